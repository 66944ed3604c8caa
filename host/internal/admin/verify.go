package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/address"
)

const (
	// verifyWait is how long a verification waits for the delivery.
	verifyWait = 30 * time.Second
	// maxSubject in bytes stays below the longest line (RFC 5322 section 2.1.1).
	maxSubject = 900
	// verifyPoll is how often it looks into the ledger.
	verifyPoll = 200 * time.Millisecond
)

// verify answers with the steps of a verification as they happen.
func (a *api) verify(w http.ResponseWriter, r *http.Request) {
	var request VerifyRequest
	if err := readJSON(r, &request); err != nil {
		a.fail(w, err)
		return
	}
	v, err := newVerification(a.Deps, request)
	if err != nil {
		a.fail(w, err)
		return
	}
	v.lines = a.lines(w)
	// What went wrong is told in the last step. An error here is a client that has gone.
	if err := v.run(r.Context()); err != nil && r.Context().Err() == nil {
		a.Logger.Warn("verification", "error", err)
	}
}

// verification is a message that the host sends to one of its own listeners, like any client.
type verification struct {
	Deps
	to, from  string
	subject   string
	connector string
	wait      time.Duration
	started   time.Time
	lines     func(any) error
}

func newVerification(d Deps, r VerifyRequest) (*verification, error) {
	v := &verification{Deps: d, to: r.To, from: r.From, connector: r.Connector, wait: verifyWait, started: time.Now()}
	if v.from == "" {
		v.from = d.Postmaster
	}
	if v.subject = r.Subject; v.subject == "" {
		v.subject = "Postern verification"
	}
	if strings.ContainsAny(v.subject, "\r\n\x00") || len(v.subject) > maxSubject {
		return nil, badRequest("subject: one line of at most %d bytes", maxSubject)
	}
	for name, text := range map[string]string{"to": v.to, "from": v.from} {
		if _, err := address.Parse(text); err != nil {
			return nil, badRequest("%s %q: %v", name, text, err)
		}
	}
	if r.Wait == "" {
		return v, nil
	}
	wait, err := config.ParseDuration(r.Wait)
	if err != nil {
		return nil, badRequest("wait: %v", err)
	}
	v.wait = wait
	return v, nil
}

// errFailed ends a verification whose last step has said why.
var errFailed = errors.New("verification failed")

func (v *verification) step(name string, ok bool, format string, args ...any) error {
	now := time.Now()
	return v.lines(VerifyStep{Time: now, Step: name, OK: ok, Text: fmt.Sprintf(format, args...), Millis: now.Sub(v.started).Milliseconds()})
}

// stop says the last step of a verification that has failed.
func (v *verification) stop(name, format string, args ...any) error {
	return errors.Join(errFailed, v.step(name, false, format, args...))
}

func (v *verification) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, v.wait+time.Minute)
	defer cancel()
	listener, err := v.listener()
	if err == nil {
		err = v.mx(ctx)
	}
	var id string
	if err == nil {
		id, err = v.send(ctx, listener)
	}
	if err == nil {
		err = v.watch(ctx, id)
	}
	if errors.Is(err, errFailed) {
		return nil
	}
	return err
}

// listener shows all of them and chooses the one to send to.
func (v *verification) listener() (Listener, error) {
	listeners := v.Listeners()
	for _, l := range listeners {
		err := v.step("listener", true, "%s %s: %s, tls %s", l.Connector, l.Address, strings.Join(l.Permissions, " "), l.TLS)
		if err != nil {
			return Listener{}, err
		}
	}
	i := slices.IndexFunc(listeners, func(l Listener) bool {
		return v.connector == "" && slices.Contains(l.Permissions, "anonymous") || v.connector != "" && l.Connector == v.connector
	})
	if i < 0 && v.connector != "" {
		return Listener{}, v.stop("listener", "no receive connector %q is listening", v.connector)
	}
	if i < 0 {
		return Listener{}, v.stop("listener", "no receive connector takes mail of anonymous clients; name one with --connector")
	}
	return listeners[i], nil
}

// mx shows where others send mail for the domain. That may well be a filter in front of this host.
func (v *verification) mx(ctx context.Context) error {
	domain := v.to[strings.LastIndexByte(v.to, '@')+1:]
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	records, err := v.LookupMX(ctx, domain)
	if err != nil {
		return v.step("mx", false, "%s: %v", domain, err)
	}
	if len(records) == 0 {
		return v.step("mx", false, "%s has no MX record", domain)
	}
	var hosts []string
	for _, r := range records {
		hosts = append(hosts, fmt.Sprintf("%d %s", r.Pref, strings.TrimSuffix(r.Host, ".")))
	}
	return v.step("mx", true, "%s: %s", domain, strings.Join(hosts, ", "))
}

// send submits the message and answers with the id that the host gave it.
func (v *verification) send(ctx context.Context, l Listener) (string, error) {
	d := &dialog{}
	target := reachable(l.Address)
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		return "", v.stop("connect", "%s: %v", target, err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", v.stop("connect", "%s: %v", target, err)
	}
	if l.TLS == "implicit" {
		conn = tls.Client(conn, ownCertificate())
	}
	d.text = textproto.NewConn(conn)
	reply, err := v.talk(d, conn, l)
	if err != nil {
		id := replyID(d.reply)
		_ = d.all([]command{{"QUIT", 221}}) // it may be closed already
		return "", v.refused(ctx, id, err)
	}
	id := replyID(reply)
	if id == "" {
		return "", v.stop("reply", "accepted, but the reply names no id: %s", reply)
	}
	return id, v.step("accepted", true, "%s", reply)
}

// refused ends a verification with what the ledger says about the refusal.
func (v *verification) refused(ctx context.Context, id string, reason error) error {
	if id != "" {
		records, _, err := v.Deps.Ledger.Search(ctx, tracking.Query{ID: id, From: v.started.Add(-time.Minute)})
		if err != nil {
			return v.stop("ledger", "%v", err)
		}
		for i := range records {
			if err := v.scenes(&records[i], false); err != nil {
				return err
			}
		}
	}
	return v.stop("done", "%s", reason)
}

// ownCertificate accepts whatever the listener shows: it is this very process, reached over its own address.
func ownCertificate() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// reachable turns "all addresses" into one that can be connected to.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	switch ip := net.ParseIP(host); {
	case host == "":
		host = "127.0.0.1"
	case ip != nil && ip.IsUnspecified() && ip.To4() != nil:
		host = "127.0.0.1"
	case ip != nil && ip.IsUnspecified():
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}

// talk goes through the dialog and answers with the reply to the message.
func (v *verification) talk(d *dialog, conn net.Conn, l Listener) (string, error) {
	if err := d.expect("the connection", 220); err != nil {
		return "", err
	}
	commands := []command{{"EHLO " + v.Info.Name, 250}}
	if l.TLS == "required" {
		if err := d.all(append(commands, command{"STARTTLS", 220})); err != nil {
			return "", err
		}
		d.text = textproto.NewConn(tls.Client(conn, ownCertificate()))
	}
	commands = append(commands, command{"MAIL FROM:<" + v.from + ">", 250}, command{"RCPT TO:<" + v.to + ">", 250}, command{"DATA", 354})
	if err := d.all(commands); err != nil {
		return "", err
	}
	w := d.text.DotWriter()
	if _, err := fmt.Fprint(w, v.message()); err != nil {
		return "", fmt.Errorf("sending the message: %w", err)
	}
	if err := w.Close(); err != nil {
		return "", fmt.Errorf("sending the message: %w", err)
	}
	if err := d.expect("the message", 250); err != nil {
		return "", err
	}
	reply := d.reply
	_ = d.all([]command{{"QUIT", 221}}) // the message is accepted, whatever comes now
	return reply, nil
}

func (v *verification) message() string {
	return fmt.Sprintf("From: <%s>\r\nTo: <%s>\r\nDate: %s\r\nMessage-ID: <verify.%d@%s>\r\nSubject: %s\r\n"+
		"Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"+
		"An operator of %s tests with this message whether mail arrives.\r\nYou need not do anything.\r\n",
		v.from, v.to, v.started.Format(time.RFC1123Z), v.started.UnixNano(), v.Info.Name, v.subject, v.Info.Name)
}

// dialog is the client's side of an SMTP session.
type dialog struct {
	text  *textproto.Conn
	reply string // the last one
}

type command struct {
	line string
	want int
}

func (d *dialog) all(commands []command) error {
	for _, c := range commands {
		if err := d.text.PrintfLine("%s", c.line); err != nil {
			return fmt.Errorf("%s: %w", c.line, err)
		}
		if err := d.expect(c.line, c.want); err != nil {
			return err
		}
	}
	return nil
}

func (d *dialog) expect(what string, want int) error {
	code, text, err := d.text.ReadResponse(want)
	d.reply = fmt.Sprintf("%d %s", code, text)
	var refused *textproto.Error
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("%s was answered with %s", what, d.reply)
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

var bracketedID = regexp.MustCompile(`\[([0-9a-z]{16}\.[0-9]+)\]`)

// replyID is the id in a reply, "" without one.
func replyID(reply string) string {
	match := bracketedID.FindStringSubmatch(reply)
	if match == nil {
		return ""
	}
	return match[1]
}

// watch tells what the ledger says about the message until it has found its end.
func (v *verification) watch(ctx context.Context, id string) error {
	deadline := time.Now().Add(v.wait)
	told := 0
	for time.Now().Before(deadline) {
		records, _, err := v.Deps.Ledger.Search(ctx, tracking.Query{ID: id, From: v.started.Add(-time.Minute)})
		if err != nil {
			return v.stop("ledger", "%v", err)
		}
		for ; told < len(records); told++ {
			if done, err := v.tell(&records[told]); done || err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(verifyPoll):
		}
	}
	return v.stop("done", "accepted, but not delivered within %s; later: postern why %s", v.wait, id)
}

// verifyEnds are the records that end a verification, and whether they are what was hoped for.
var verifyEnds = map[string]bool{
	tracking.Send: true, tracking.Fail: false, tracking.Defer: false, tracking.Drop: false, tracking.Quarantine: false, tracking.Poison: false,
}

func (v *verification) tell(r *tracking.Record) (done bool, err error) {
	good, end := verifyEnds[r.Event]
	end = end && !r.Beside()
	if err := v.scenes(r, !end || good); err != nil {
		return true, err
	}
	if end && good {
		return true, v.step("done", true, "delivered after %s", time.Since(v.started).Round(time.Millisecond))
	}
	if end {
		return true, v.stop("done", "not delivered")
	}
	return false, nil
}

// scenes says what a record tells. ok is of what came of it: what agents said before is as it is.
func (v *verification) scenes(r *tracking.Record, ok bool) error {
	for _, scene := range r.Scenes() {
		name, fine := scene.Event, true
		if scene.Who == "host" {
			name, fine = strings.ToLower(name), ok
		}
		text := scene.Who + ": " + scene.Text
		if len(scene.Details) > 0 {
			text += " (" + strings.Join(scene.Details, "; ") + ")"
		}
		if err := v.step(name, fine, "%s", text); err != nil {
			return err
		}
	}
	return nil
}
