// Command antivirus shows mail to virus scanners, several at once or in order, and acts on what they find. It reimagines
// Forefront's agent for Exchange.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:         "antivirus",
		Version:      "0.1.0",
		Category:     sdk.Antivirus,
		Summary:      "shows mail to virus scanners (clamd, ICAP, a command) and acts on what they find",
		SharedStamps: []string{stampStatus},
	}
}
