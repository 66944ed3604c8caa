// Command senderfilter refuses mail by its sender: lists of the operator, and what recipients have blocked. It
// reimagines the Sender Filter agent of Exchange's Edge Transport.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:     "senderfilter",
		Version:  "0.2.0",
		Category: sdk.Antispam,
		Summary:  "refuses mail by its sender: own lists, and the senders that recipients have blocked",
	}
}
