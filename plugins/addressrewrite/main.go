// Command addressrewrite turns internal addresses into external ones on the way out, and back on the way in. It
// reimagines the Address Rewriting agents of Exchange's Edge Transport, with SRS for forwarded mail.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:     "addressrewrite",
		Version:  "0.1.0",
		Category: sdk.Rewrite,
		Summary:  "rewrites addresses in envelope and header, inbound or outbound",
	}
}
