// Command edgerules acts on messages by rules of the operator. It reimagines the Edge Rule agent of Exchange's Edge
// Transport, with authentication results, attachments, actions for single recipients, and a test of the rules.
package main

import "github.com/posternmail/postern/sdk"

func main() { sdk.Main(info(), New) }

// info is what the agent tells about itself.
func info() sdk.Info {
	return sdk.Info{
		Name:         "edgerules",
		Version:      "0.2.0",
		Category:     sdk.Policy,
		Summary:      "acts on messages by rules of the operator",
		SharedStamps: []string{"scl"},
		Commands: []sdk.Command{{
			Name: "test", Summary: "tells which rules a message file matches, and why", Run: test,
		}},
	}
}
