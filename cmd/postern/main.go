// Command postern is an edge mail transport: the host, and everything one does to it.
package main

import (
	"os"

	"github.com/posternmail/postern/host/command"
)

// version is set by the linker, see the Makefile.
var version = "0.1.0"

func main() { os.Exit(command.Main(version)) }
