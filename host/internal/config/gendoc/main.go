// Command gendoc writes docs/configuration.md from the tables of package config.
package main

import (
	"bytes"
	"fmt"
	"os"

	"github.com/posternmail/postern/host/internal/config"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gendoc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: gendoc FILE")
	}
	var b bytes.Buffer
	if err := config.WriteDocs(&b); err != nil {
		return fmt.Errorf("make the documentation: %w", err)
	}
	return os.WriteFile(args[0], b.Bytes(), 0o644)
}
