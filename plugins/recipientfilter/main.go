// Command recipientfilter refuses recipients that do not exist or are blocked, and ends sessions that only look
// for some that do. It reimagines the Recipient Filter agent of Exchange's Edge Transport.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:     "recipientfilter",
		Version:  "0.2.0",
		Category: sdk.Antispam,
		Summary:  "refuses recipients that do not exist or are blocked, and those who search for some that do",
	}
}
