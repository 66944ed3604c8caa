// Command attachmentfilter keeps unwanted files out of mail: by name, type and content, inside archives too. It
// reimagines the Attachment Filtering agent of Exchange's Edge Transport.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:     "attachmentfilter",
		Version:  "0.2.0",
		Category: sdk.Policy,
		Summary:  "keeps unwanted files out of mail: by name, type and content, inside archives too",
	}
}
