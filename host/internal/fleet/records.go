package fleet

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/posternmail/postern/host/internal/catalog"
	"github.com/posternmail/postern/host/internal/config"
)

// This file keeps what must outlive the host about its agents: what was ordered by command and is not said in the
// configuration, and the generations that have run.

// recordsFile is in the data directory. Its mode is 0600: config blocks may hold secrets.
const recordsFile = "agents.json"

// generation is what it takes to run a generation of an agent again.
type generation struct {
	Version string            `json:"version"`
	Command []string          `json:"command"`
	Config  json.RawMessage   `json:"config,omitempty"`
	Named   []string          `json:"named,omitempty"`  // files in Config, for the sandbox
	SHA256  string            `json:"sha256,omitempty"` // of the program
	Files   map[string]string `json:"files,omitempty"`  // SHA-256 of all that Command runs, by path
	Since   time.Time         `json:"since"`
}

// same reports whether two generations are the same program under the same configuration.
func (g *generation) same(other *generation) bool {
	return g != nil && other != nil && slices.Equal(g.Command, other.Command) && g.SHA256 == other.SHA256 &&
		bytes.Equal(compact(g.Config), compact(other.Config))
}

func compact(raw json.RawMessage) []byte {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return raw
	}
	return b.Bytes()
}

// override is what was ordered instead of what the configuration says.
type override struct {
	Order   string            `json:"order"` // "upgrade", "rollback", "enable", "disable"
	Enabled *bool             `json:"enabled,omitempty"`
	Version string            `json:"version,omitempty"` // as it was asked for or found
	Command []string          `json:"command,omitempty"`
	SHA256  map[string]string `json:"sha256,omitempty"`  // of the files that run, by path
	Config  json.RawMessage   `json:"config,omitempty"`  // of a rollback
	Named   []string          `json:"named,omitempty"`   // files in Config
	Instead *generation       `json:"instead,omitempty"` // only while the configuration asks for this one
	Why     string            `json:"why,omitempty"`     // that one was taken back
	Since   time.Time         `json:"since"`
}

// agentRecord is what is kept of one agent.
type agentRecord struct {
	Override *override   `json:"override,omitempty"`
	Current  *generation `json:"current,omitempty"`  // the last good one
	Known    *known      `json:"known,omitempty"`    // what Current asks for
	Previous *generation `json:"previous,omitempty"` // what rollback goes back to
	Trial    *trialOrder `json:"trial,omitempty"`
}

// agentRecords are what is kept of all agents, by label. Safe for concurrent use.
type agentRecords struct {
	path string

	mu     sync.Mutex
	agents map[string]*agentRecord
}

// openRecords reads the records of a data directory. Without a file there are none.
func openRecords(dataDir string) (*agentRecords, error) {
	r := &agentRecords{path: filepath.Join(dataDir, recordsFile), agents: map[string]*agentRecord{}}
	raw, err := os.ReadFile(r.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, nil
	case err != nil:
		return nil, fmt.Errorf("orders and generations of agents: %w", err)
	}
	if err := json.Unmarshal(raw, &r.agents); err != nil {
		return nil, fmt.Errorf("orders and generations of agents: %s: %w; remove it to run what the configuration says", r.path, err)
	}
	return r, nil
}

// of is a copy of what is kept of an agent.
func (r *agentRecords) of(name string) agentRecord {
	r.mu.Lock()
	defer r.mu.Unlock()
	if one := r.agents[name]; one != nil {
		return *one
	}
	return agentRecord{}
}

// change has f change what is kept of an agent and writes it to the disk. When that fails nothing is changed.
func (r *agentRecords) change(name string, f func(*agentRecord)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.agents[name]
	after := agentRecord{}
	if before != nil {
		after = *before
	}
	f(&after)
	r.agents[name] = &after
	if err := r.write(); err != nil {
		r.agents[name] = before
		if before == nil {
			delete(r.agents, name)
		}
		return err
	}
	return nil
}

// writable says why a change could not be kept.
func (r *agentRecords) writable() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.write()
}

// write replaces the file, synced. Under mu.
func (r *agentRecords) write() error {
	raw, err := json.MarshalIndent(r.agents, "", "  ")
	if err != nil {
		return err
	}
	temp := r.path + ".new"
	if err := writeSynced(temp, raw); err != nil {
		return fmt.Errorf("orders and generations of agents: %w", err)
	}
	if err := os.Rename(temp, r.path); err != nil {
		return fmt.Errorf("orders and generations of agents: %w", err)
	}
	return syncDir(filepath.Dir(r.path))
}

func writeSynced(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// names of the agents that something is kept of.
func (r *agentRecords) names() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.agents {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// apply changes an agent from what its block says to what was ordered, and notes the difference.
func (o *override) apply(a *config.Agent) {
	if o == nil {
		return
	}
	var drift []string
	if o.Enabled != nil && *o.Enabled != a.Enabled {
		a.Enabled = *o.Enabled
		drift = append(drift, map[bool]string{true: "enabled", false: "disabled"}[a.Enabled])
	}
	if len(o.Command) > 0 && !slices.Equal(o.Command, a.Command) && a.Attach == "" {
		if a.Version == "" || !catalog.Satisfies(o.Version, a.Version) { // else it is what the block allows
			drift = append(drift, strings.TrimSpace("runs "+strings.Join(o.Command, " ")+" "+inParens(o.Version)))
		}
		a.Command, a.Bundled = slices.Clone(o.Command), false
	}
	if o.SHA256 != nil && a.Attach == "" && (len(o.Command) == 0 || slices.Equal(o.Command, a.Command)) {
		a.SHA256 = maps.Clone(o.SHA256)
	}
	if o.Config != nil && a.Enabled {
		a.Config, a.Sandbox.Named = slices.Clone(o.Config), slices.Clone(o.Named)
		drift = append(drift, "with the config block of its former generation")
	}
	if len(drift) > 0 {
		if o.Why != "" {
			drift = append(drift, "since the configured one was taken back ("+o.Why+"),")
		}
		a.Drift = fmt.Sprintf("%s since %s, by postern agent %s", strings.Join(drift, ", "), o.Since.Format(time.RFC3339), o.Order)
	}
}

func inParens(s string) string {
	if s == "" {
		return ""
	}
	return "(" + s + ")"
}

// Override applies what was ordered to an agent of a configuration that is being read, for config.Options.
func (f *Fleet) Override(_ config.Host, a *config.Agent) { f.records.of(a.Name).apply(a) }

// Overrides applies what was ordered by command to the agents of a configuration, for config.Options. A file that
// cannot be read is told by Launch.
func Overrides() func(config.Host, *config.Agent) {
	record := recorded()
	return func(host config.Host, a *config.Agent) { record(host, a.Name).apply(a) }
}

// recorded reads what is kept of agents, each data directory once. What cannot be read is as if it were not there.
func recorded() func(config.Host, string) agentRecord {
	opened := map[string]*agentRecords{}
	return func(host config.Host, name string) agentRecord {
		r := opened[host.DataDir]
		if r == nil {
			var err error
			if r, err = openRecords(host.DataDir); err != nil {
				r = &agentRecords{agents: map[string]*agentRecord{}}
			}
			opened[host.DataDir] = r
		}
		return r.of(name)
	}
}

// apply is override.apply for an order that does not depend on what the configuration asks for; that is settled when
// the block was decoded, see Fleet.settle.
func (r agentRecord) apply(a *config.Agent) {
	if r.Override != nil && r.Override.Instead == nil {
		r.Override.apply(a)
	}
}

// generationOf is an agent as it is configured.
func generationOf(a *config.Agent, version string) *generation {
	return &generation{Version: version, Command: a.Command, Config: a.Config, Named: a.Sandbox.Named, SHA256: sumOf(a), Files: a.SHA256, Since: time.Now()}
}

// sumOf is the SHA-256 of the program that an agent was started with, or of what is there where that is not known.
func sumOf(a *config.Agent) string {
	if len(a.Command) > 0 && a.SHA256[a.Command[0]] != "" {
		return a.SHA256[a.Command[0]]
	}
	return programSum(a.Command)
}

// programSum is the SHA-256 of the program that a command runs, "" when it cannot be read.
func programSum(command []string) string {
	if len(command) == 0 {
		return ""
	}
	f, err := os.Open(command[0])
	if err != nil {
		return ""
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return ""
	}
	return hex.EncodeToString(sum.Sum(nil))
}
