// Command mock does whatever a test asks of it, misbehaviour included. See README.md.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
)

func main() {
	startBadly(os.Getenv("MOCK_START"))
	sdk.Main(sdk.Info{
		Name: "mock", Version: version(), Category: sdk.Other,
		Summary:            "does whatever a test asks of it",
		SharedStamps:       []string{"scl", "pcl", "srl", "auth.spf", "auth.dkim", "auth.dmarc", "av.status"},
		ExclusiveResources: strings.Fields(os.Getenv("MOCK_EXCLUSIVE")),
		Commands: []sdk.Command{
			{Name: "echo", Summary: "prints its arguments and configuration", Run: echo},
		},
	}, New)
}

// release is set by tests that build several versions (-ldflags "-X main.release=1.1.0").
var release = "1.0.0"

// version lets a test start two versions of one binary, too.
func version() string {
	if v := os.Getenv("MOCK_VERSION"); v != "" {
		return v
	}
	return release
}

// startBadly does what an agent can do wrong before anybody has asked it anything.
func startBadly(how string) {
	switch how {
	case "exit":
		fmt.Fprintln(os.Stderr, "mock: exiting before the handshake")
		os.Exit(3)
	case "hang":
		time.Sleep(time.Hour)
	case "chatter":
		fmt.Println("mock: this is no handshake")
	case "nonsense":
		os.Stderr.WriteString("{\"@message\": 5}\n{\"@level\": [], \"@timestamp\": {}}\n\x00\xff\xfe\x1b[2J\n")
	}
}
