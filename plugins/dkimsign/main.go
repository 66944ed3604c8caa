// Command dkimsign signs the mail of our own domains on its way out, and seals what we pass on.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:     "dkimsign",
		Version:  "0.2.0",
		Category: sdk.Policy,
		Summary:  "signs outgoing mail (DKIM) and seals what is passed on (ARC)",
		Commands: []sdk.Command{{Name: "records", Summary: "prints the DNS records of the keys in the configuration", Run: records}},
	}
}
