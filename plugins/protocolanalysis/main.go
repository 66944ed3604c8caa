// Command protocolanalysis gives each source of mail a sender reputation level (SRL) by how it has behaved, and blocks the
// worst for a time. It reimagines the Protocol Analysis agent of Exchange's Edge Transport.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:         "protocolanalysis",
		Version:      "1.1.0",
		Category:     sdk.Antispam,
		Summary:      "rates sources of mail by their behaviour and blocks the worst for a time",
		SharedStamps: []string{stampSRL},
	}
}
