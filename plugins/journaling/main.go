// Command journaling sends reports of messages to an archive, in the form of MS-XJRNL. It reimagines the Journaling
// agent of Exchange, with reports that can be counted and checked.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:     "journaling",
		Version:  "0.3.0",
		Category: sdk.Journaling,
		Summary:  "sends reports of messages to an archive",
		Commands: []sdk.Command{{
			Name: "verify", Summary: "names reports that are missing in an archive (Maildir, mbox, folder) or altered", Run: verify,
		}},
	}
}
