// Command stripper replaces unwanted attachments by a notice and keeps the message with them in quarantine.
package main

import "github.com/posternmail/postern/sdk"

func main() {
	sdk.Main(info(), New)
}

func info() sdk.Info {
	return sdk.Info{
		Name: "stripper", Version: "1.0.0", Category: sdk.Policy,
		Summary: "replaces unwanted attachments by a notice",
	}
}
