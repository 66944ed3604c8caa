// Command contentfilter gives messages a spam confidence level (SCL) and acts on it. It reimagines the Content
// Filter agent of Exchange's Edge Transport.
package main

import "github.com/posternmail/postern/sdk"

// version of the agent, and the DV token of its report header.
const version = "1.3.0"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:         "contentfilter",
		Version:      version,
		Category:     sdk.Antispam,
		Summary:      "gives messages a spam confidence level (SCL) and acts on it",
		SharedStamps: []string{"scl", "pcl"},
		Commands:     commands(),
	}
}
