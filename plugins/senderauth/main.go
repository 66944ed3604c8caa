// Command senderauth finds out whether a message comes from where it says: SPF, DKIM, DMARC, ARC and Sender ID. It
// reimagines the Sender ID agent of Exchange's Edge Transport.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:         "senderauth",
		Version:      "0.2.0",
		Category:     sdk.Antispam,
		Summary:      "verifies senders by SPF, DKIM, DMARC, ARC and Sender ID",
		SharedStamps: []string{stampSPF, stampDKIM, stampDMARC, stampARC, stampSenderID, stampDomain},
		Commands: []sdk.Command{{
			Name: "test", Summary: "tells what a client would be told: IP, the sender's address or domain, the name in HELO", Run: test,
		}},
	}
}
