package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
)

// QueueControl is what the control socket needs of the queue. *queue.Queue implements it.
type QueueControl interface {
	Entries(filter func(queue.Entry) bool) []queue.Entry
	Load(id string) (*queue.Item, error)
	Retry(ids ...string) error
	Suspend(id string) error
	Resume(id string) error
	Remove(id string) error
	Release(id string) error
}

// AgentControl is what the control socket needs of the agents.
type AgentControl interface {
	// List answers with every configured agent, in the order of priority.
	List() []Agent
	// Restart replaces the processes of one agent, one after another.
	Restart(ctx context.Context, name string) error
}

// LedgerControl is the ledger as the control socket reads and writes it. *tracking.File implements it.
type LedgerControl interface {
	Write(r *tracking.Record)
	Search(ctx context.Context, q tracking.Query) (records []tracking.Record, more bool, err error)
	Follow(ctx context.Context, q tracking.Query, fn func(tracking.Record) error) error
	Written() uint64
	Dropped() uint64
}

// Info says which host this is.
type Info struct {
	Version string
	Name    string
	Config  string // file or folder
	DataDir string
	Started time.Time
}

// Deps are the parts of the host that the control socket shows and drives. None is nil.
type Deps struct {
	Info       Info
	Queue      QueueControl
	Agents     AgentControl
	Operator   OperatorControl
	Pipeline   func() []pipeline.EventPlan
	Tables     tables.Store
	Ledger     LedgerControl
	Listeners  func() []Listener
	Effective  func() any                        // the effective configuration, as `config show --json` prints it
	Health     func() (degraded, drift []string) // what is wrong beside what the other parts tell
	Postmaster string                            // sender of a verification
	LookupMX   func(ctx context.Context, domain string) ([]*net.MX, error)
	Metrics    *Metrics
	Process    ProcessControl
	Logger     hclog.Logger
}

// ProcessControl is the process of the host as the control socket drives it.
type ProcessControl interface {
	// Restart replaces the process by a new one; see Restarted.
	Restart(ctx context.Context) (Restarted, error)
	// Drain takes no more connections, and answers with the number of sessions that are still open.
	Drain(ctx context.Context) (Drained, error)
	// Adopt picks up what hosts that were replaced have accepted since, and AdoptRows only the rows they have written.
	Adopt()
	AdoptRows()
}

// maxSocketPath is what fits into sun_path with its final NUL, see unix(7).
const maxSocketPath = 107

// SocketPath of a host, in its data directory.
func SocketPath(dataDir string) string { return filepath.Join(dataDir, "control.sock") }

// Server is a control socket that is served.
type Server struct {
	http   *http.Server
	socket string
	done   chan error
}

// Serve opens the control socket at path, mode 0600, and serves it until Close. A socket left by a host that
// was killed is replaced; one that answers is an error.
func Serve(path string, d Deps) (*Server, error) {
	listener, err := listen(path)
	if err != nil {
		return nil, err
	}
	s := &Server{
		http: &http.Server{
			Handler:           onlyOwner(handler(d)),
			ConnContext:       withPeer,
			ReadHeaderTimeout: 10 * time.Second,
			ErrorLog:          d.Logger.Named("admin").StandardLogger(&hclog.StandardLoggerOptions{InferLevels: true}),
		},
		socket: path,
		done:   make(chan error, 1),
	}
	go func() { s.done <- s.http.Serve(listener) }()
	return s, nil
}

// Retire removes the socket and takes no more requests. Those under way go on, until Close.
func (s *Server) Retire() error {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.http.Shutdown(over) // closes the listener, and does not wait
	return nil
}

// Close ends the server and removes the socket. Requests under way are cut off after a second.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	if served := <-s.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

func listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("control socket %s: the path has %d bytes, a unix socket allows %d; choose a shorter data_dir",
			path, len(path), maxSocketPath)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("control socket %s: another host answers there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	listener, err := listenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return listener, nil
}

// handler routes all requests.
func handler(d Deps) http.Handler {
	a := &api{Deps: d}
	mux := http.NewServeMux()
	route := func(pattern string, fn func(r *http.Request) (any, error)) {
		mux.Handle(pattern, a.json(fn))
	}
	route("GET /v1/version", a.version)
	route("GET /v1/status", a.status)
	route("GET /v1/config", a.config)
	route("GET /v1/pipeline", a.pipeline)
	route("GET /v1/agents", a.agents)
	route("GET /v1/agents/{name}", a.agent)
	route("POST /v1/agents/{name}/restart", a.restartAgent)
	route("POST /v1/agents/{name}/order", a.orderAgent)
	route("GET /v1/agents/{name}/compare", a.compareAgent)
	route("POST /v1/reload", a.reload)
	route("GET /v1/queue", a.queue)
	route("GET /v1/queue/{id}", a.item)
	route("POST /v1/queue/retry", a.retry)
	route("POST /v1/queue/remove", a.remove)
	route("POST /v1/queue/suspend", a.suspend)
	route("POST /v1/queue/resume", a.resume)
	route("GET /v1/quarantine", a.quarantine)
	route("GET /v1/quarantine/{id}", a.quarantinedItem)
	route("POST /v1/quarantine/release", a.release)
	route("POST /v1/quarantine/delete", a.deleteQuarantined)
	route("GET /v1/tables", a.tables)
	route("GET /v1/tables/{table}", a.rows)
	route("POST /v1/tables/{table}", a.putRows)
	route("GET /v1/tables/{table}/row", a.row)
	route("DELETE /v1/tables/{table}/row", a.deleteRow)
	route("POST /v1/restart", a.restart)
	route("POST /v1/drain", a.drain)
	route("POST /v1/incoming/adopt", a.adopt)
	route("POST /v1/incoming/adopt-rows", a.adoptRows)
	route("GET /v1/track", a.track)
	route("GET /v1/why/{id}", a.why)
	mux.HandleFunc("GET /v1/queue/{id}/raw", a.raw)
	mux.HandleFunc("GET /v1/follow", a.follow)
	mux.HandleFunc("POST /v1/verify", a.verify)
	mux.Handle("GET /metrics", d.Metrics)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile) // for `go tool pprof`, see docs/performance.md
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.Handle("/", a.json(func(r *http.Request) (any, error) {
		return nil, &failure{http.StatusNotFound, Problem{Error: "this host has no " + r.Method + " " + r.URL.Path,
			Hint: "it may be older than this command"}}
	}))
	return mux
}

// api holds the handlers.
type api struct{ Deps }

// failure is a Problem with its HTTP status.
type failure struct {
	status  int
	problem Problem
}

// Error implements error.
func (f *failure) Error() string { return f.problem.Error }

func badRequest(format string, args ...any) error {
	return &failure{http.StatusBadRequest, Problem{Error: fmt.Sprintf(format, args...)}}
}

func notFound(format string, args ...any) error {
	return &failure{http.StatusNotFound, Problem{Error: fmt.Sprintf(format, args...)}}
}

// json answers with what fn answers, or with a Problem.
func (a *api) json(fn func(r *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(VersionHeader, a.Info.Version)
		answer, err := fn(r)
		if err != nil {
			a.fail(w, err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	})
}

func (a *api) fail(w http.ResponseWriter, err error) {
	w.Header().Set(VersionHeader, a.Info.Version)
	var f *failure
	switch {
	case errors.As(err, &f):
		writeJSON(w, f.status, f.problem)
	case errors.Is(err, queue.ErrNotFound):
		writeJSON(w, http.StatusNotFound, Problem{Error: err.Error()})
	default:
		writeJSON(w, http.StatusInternalServerError, Problem{Error: err.Error()})
	}
}

// writeJSON ignores the error of a client that has gone.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(v)
}

// readJSON reads the body of a request, at most 16 MiB, without unknown names.
func readJSON(r *http.Request, v any) error {
	decoder := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 16<<20))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return badRequest("request: %v", err)
	}
	return nil
}
