// Command dump writes every event with all its facts to a file: what an agent gets to see, and when. It
// changes nothing.
package main

import "github.com/posternmail/postern/sdk"

func main() {
	sdk.Main(sdk.Info{Name: "dump", Version: "1.0.0", Summary: "writes every event with all its facts to a file"}, New)
}
