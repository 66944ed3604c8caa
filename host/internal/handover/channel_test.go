package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// roleVariable makes this test's program play the new process.
const roleVariable = "HANDOVER_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role))
	}
	os.Exit(m.Run())
}

// play is a new process that does as its role says.
func play(role string) int {
	ctx := context.Background()
	if role == "activated" {
		return playActivated()
	}
	if role == "dies before its first word" {
		return 3
	}
	if role == "stands still" { // and does not even see that it is given up
		time.Sleep(time.Hour)
	}
	heir, err := Inherited(ctx)
	if err != nil || heir == nil {
		fmt.Fprintln(os.Stderr, err)
		return 4
	}
	fail := func(err error) int { heir.Fail(err); return 1 }
	if role == "gives up" {
		return fail(errors.New("config.hcl:1: this and that\nand more"))
	}
	if role == "hangs" {
		time.Sleep(time.Hour)
	}
	if len(heir.Exclusive) > 0 {
		if err := heir.Quiesce(ctx); err != nil {
			return fail(err)
		}
	}
	if role == "dies after quiesce" {
		return 3
	}
	if err := heir.Ready(ctx); err != nil {
		return fail(err)
	}
	if role == "dies as the owner" {
		return 3
	}
	if err := heir.Running(); err != nil {
		return 5
	}
	if role == "lives" {
		return playServer(heir)
	}
	return 0
}

// playServer answers one connection at the socket that it has inherited.
func playServer(heir *Heir) int {
	l, err := heir.Listeners.Listen(os.Getenv("HANDOVER_TEST_ADDRESS"))
	if err != nil {
		return 6
	}
	c, err := l.Accept()
	if err != nil {
		return 7
	}
	fmt.Fprintf(c, "pid %d", os.Getpid())
	_ = c.Close()
	return 0
}

// playActivated tells which sockets systemd has passed.
func playActivated() int {
	_ = os.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid())) // the test could not know it
	l, err := Activated()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	listener, err := l.Listen(os.Getenv("HANDOVER_TEST_ADDRESS"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_, kept := os.LookupEnv("LISTEN_FDS")
	fmt.Println(listener.Addr(), l.CloseUnused(), kept)
	return 0
}

// diary is an owner that notes what it is told to do.
type diary struct {
	mu    sync.Mutex
	notes []string
	cede  error
}

func (d *diary) note(s string) { d.mu.Lock(); defer d.mu.Unlock(); d.notes = append(d.notes, s) }

func (d *diary) Quiesce(context.Context) error { d.note("quiesce"); return nil }
func (d *diary) Cede(context.Context) error    { d.note("cede"); return d.cede }
func (d *diary) Resume() error                 { d.note("resume"); return nil }

func offer(t *testing.T, role string) Offer {
	t.Helper()
	t.Setenv(roleVariable, role)
	ownership, err := Own(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ownership.Close() })
	return Offer{Command: []string{os.Args[0]}, Listeners: NewListeners(), Ownership: ownership, Patience: 30 * time.Second}
}

// TestHandFails: whatever becomes of the new process, the owner learns why, and takes back what it has given up.
func TestHandFails(t *testing.T) {
	for _, c := range []struct {
		role      string
		exclusive []string
		patience  time.Duration
		cede      error
		notes     string
		want      string
	}{
		{role: "dies before its first word", want: "ended without a word (exit status 3)"},
		{role: "gives up", want: "config.hcl:1: this and that\nand more"},
		{role: "hangs", patience: time.Second, want: `did not say "ready" within 1s`},
		{role: "dies after quiesce", exclusive: []string{"porter"}, notes: "quiesce resume", want: "exit status 3"},
		{role: "dies as the owner", notes: "cede resume", want: "exit status 3"},
		{role: "dies as the owner", exclusive: []string{"porter"}, notes: "quiesce cede resume", want: "exit status 3"},
		{role: "lives", cede: errors.New("disk on fire"), notes: "cede resume", want: "disk on fire"},
	} {
		t.Run(c.role, func(t *testing.T) {
			o := offer(t, c.role)
			o.Exclusive = c.exclusive
			if c.patience > 0 {
				o.Patience = c.patience
			}
			d := &diary{cede: c.cede}
			_, err := Hand(t.Context(), d, o)
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrLost) {
				t.Errorf("got %v", err)
			}
			if got := strings.Join(d.notes, " "); got != c.notes {
				t.Errorf("the owner did %q, not %q", got, c.notes)
			}
		})
	}
	t.Run("stands still", func(t *testing.T) {
		o := offer(t, "stands still")
		o.Patience = 5 * time.Second // to have come so far
		said, err := os.CreateTemp(t.TempDir(), "stderr")
		if err != nil {
			t.Fatal(err)
		}
		former := os.Stderr
		os.Stderr = said // which the new process has, too
		_, _ = Hand(t.Context(), &diary{}, o)
		os.Stderr = former
		if text, err := os.ReadFile(said.Name()); err != nil || !strings.Contains(string(text), "handover.play(") {
			t.Errorf("it has not said where it stands still: %v\n%s", err, text)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		o := offer(t, "")
		o.Command = []string{"/nonexistent/postern"}
		d := &diary{}
		if _, err := Hand(t.Context(), d, o); !errors.Is(err, os.ErrNotExist) || len(d.notes) > 0 {
			t.Errorf("got %v, %v", err, d.notes)
		}
	})
}

// TestHand: the new process has the sockets, and with them those who connected meanwhile, and the lock, which nobody
// else could have in between.
func TestHand(t *testing.T) {
	o := offer(t, "lives")
	l, err := o.Listeners.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HANDOVER_TEST_ADDRESS", "127.0.0.1:0")
	waiting, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	pid, err := Hand(t.Context(), &diary{}, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := o.Ownership.file.Name()
	dir = dir[:strings.LastIndexByte(dir, '/')]
	if err := o.Ownership.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Own(dir); !errors.Is(err, ErrOwned) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", pid)) {
		t.Errorf("the data directory can be owned by a third: %v", err)
	}
	answer := make([]byte, 100)
	n, _ := waiting.Read(answer)
	if got, want := string(answer[:n]), fmt.Sprintf("pid %d", pid); got != want {
		t.Errorf("%q answers who waited, not %q", got, want)
	}
}

func TestActivated(t *testing.T) {
	var files []*os.File
	var addresses []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, addresses = append(files, f), append(addresses, l.Addr().String())
	}
	cmd := exec.Command(os.Args[0])
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), roleVariable+"=activated", "LISTEN_FDS=2", "HANDOVER_TEST_ADDRESS="+addresses[1])
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("%s [%s] false\n", addresses[1], addresses[0]); err != nil || string(out) != want {
		t.Errorf("got %v %q, not %q", err, out, want)
	}
}
