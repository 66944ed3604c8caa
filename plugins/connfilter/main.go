// Command connfilter judges clients by their address: lists of networks and DNS lists. It reimagines the
// Connection Filtering agent of Exchange's Edge Transport.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:     "connfilter",
		Version:  "1.1.0",
		Category: sdk.Antispam,
		Summary:  "allows and refuses clients by their address: own lists and DNS lists",
	}
}
