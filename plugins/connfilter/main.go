// Command connfilter judges clients by their address: lists of networks and DNS lists. It reimagines the
// Connection Filtering agent of Exchange's Edge Transport.
package main

import (
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/feed"
)

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:         "connfilter",
		Version:      "1.2.0",
		Category:     sdk.Antispam,
		Summary:      "allows and refuses clients by their address: own lists, signed feeds and DNS lists",
		SharedStamps: []string{stampReputation},
		Commands:     []sdk.Command{feed.Command(func(c Config) []feed.Source { return c.Feeds }, buildLists)},
	}
}
