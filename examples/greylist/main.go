// Command greylist defers the first attempt of an unknown (network, sender, recipient). Software that sends
// spam in bulk seldom comes back; a mail server does.
package main

import "github.com/posternmail/postern/sdk"

func main() {
	sdk.Main(sdk.Info{
		Name: "greylist", Version: "1.0.0", Category: sdk.Antispam,
		Summary: "defers the first attempt of an unknown network, sender and recipient",
	}, New)
}
