package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// icap is a client of ICAP (RFC 3507) that shows each part to a server and asks whether it would let it pass.
type icap struct {
	ICAP
	host    string // for the Host field
	pool    *pool
	mu      sync.Mutex
	options icapOptions
	until   time.Time // that options are good for
}

// icapOptions are what the server answered to OPTIONS.
type icapOptions struct {
	preview int64 // -1: none
	tag     string
	service string
}

// Limits and defaults of ICAP.
const (
	icapPort       = "1344"
	icapsPort      = "11344"
	icapOptionsFor = 5 * time.Minute // where the server does not say (RFC 3507 section 4.10.2)
	maxICAPHeader  = 64 << 10
	sentWithin     = 100 * time.Millisecond // of the answer: what is sent after it does not matter
)

// newICAP checks the URL.
func newICAP(cfg ICAP, e Engine) (*icap, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, err
	}
	port := map[string]string{"icap": icapPort, "icaps": icapsPort}[u.Scheme]
	if port == "" || u.Hostname() == "" || u.User != nil {
		return nil, fmt.Errorf("%q is no URL such as icap://127.0.0.1:1344/avscan", cfg.URL)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	c := &icap{ICAP: cfg, host: u.Host}
	addr := net.JoinHostPort(u.Hostname(), port)
	dial := (&net.Dialer{}).DialContext
	if u.Scheme == "icaps" {
		dial = (&tls.Dialer{Config: &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}}).DialContext
	}
	c.pool = &pool{max: e.MaxConnections, dial: func(ctx context.Context) (net.Conn, error) { return dial(ctx, "tcp", addr) }}
	return c, nil
}

// close implements engine.
func (c *icap) close() { c.pool.close() }

// version implements engine: the server's ISTag stands for the state of its engine and signatures (RFC 3507 section 4.7).
func (c *icap) version(ctx context.Context) (version, error) {
	c.mu.Lock()
	c.until = time.Time{}
	c.mu.Unlock()
	o, err := c.asked(ctx)
	if err != nil || o.tag == "" {
		return version{}, err
	}
	return version{text: clip(strings.TrimSpace(o.service+" "+o.tag), maxName)}, nil
}

// asked answers with the options, which are asked for when they are not good any more.
func (c *icap) asked(ctx context.Context) (icapOptions, error) {
	c.mu.Lock()
	o, fresh := c.options, time.Now().Before(c.until)
	c.mu.Unlock()
	if fresh {
		return o, nil
	}
	keep := icapOptionsFor
	err := c.pool.talk(ctx, func(conn *connection) (again bool, err error) {
		request := "OPTIONS " + c.URL + " ICAP/1.0\r\nHost: " + c.host + "\r\nEncapsulated: null-body=0\r\n\r\n"
		if _, err := io.WriteString(conn, request); err != nil {
			return false, err
		}
		r, err := readICAP(conn.in)
		if err != nil {
			return false, err
		}
		if r.code != 200 {
			return false, fmt.Errorf("OPTIONS is answered by %s", r.status)
		}
		o = r.options()
		if seconds, err := strconv.Atoi(r.header.Get("Options-TTL")); err == nil && seconds > 0 && seconds < 1<<20 {
			keep = time.Duration(seconds) * time.Second
		}
		return r.keeps() && !strings.Contains(r.header.Get("Encapsulated"), "opt-body"), nil
	})
	if err != nil {
		return icapOptions{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.options, c.until = o, time.Now().Add(keep)
	return o, nil
}

// icapReply is the head of an answer.
type icapReply struct {
	code   int
	status string
	header textproto.MIMEHeader
}

func (r *icapReply) options() icapOptions {
	o := icapOptions{preview: -1, tag: strings.Trim(r.header.Get("Istag"), `"`), service: r.header.Get("Service")}
	if n, err := strconv.ParseInt(r.header.Get("Preview"), 10, 32); err == nil && n >= 0 {
		o.preview = n
	}
	return o
}

// keeps reports whether the server keeps the connection.
func (r *icapReply) keeps() bool { return !strings.EqualFold(r.header.Get("Connection"), "close") }

// readICAP reads a status line and a header, of bounded size.
func readICAP(in *bufio.Reader) (*icapReply, error) {
	line, err := readLine(in)
	if err != nil {
		return nil, err
	}
	protocol, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	n, err := strconv.Atoi(code)
	if !strings.HasPrefix(protocol, "ICAP/1.") || err != nil {
		return nil, fmt.Errorf("cannot be understood: %s", clip(line, maxName))
	}
	r := &icapReply{code: n, status: clip(rest, maxName), header: textproto.MIMEHeader{}}
	last := ""
	for total := 0; total < maxICAPHeader; total += len(line) {
		if line, err = readLine(in); err != nil {
			return nil, err
		}
		name, value, ok := strings.Cut(line, ":")
		switch {
		case line == "":
			return r, nil
		case (line[0] == ' ' || line[0] == '\t') && last != "":
			values := r.header[last]
			values[len(values)-1] += "\n" + strings.TrimSpace(line)
		case ok:
			last = textproto.CanonicalMIMEHeaderKey(name)
			r.header[last] = append(r.header[last], strings.TrimSpace(value))
		}
	}
	return nil, errors.New("an endless answer")
}

func readLine(in *bufio.Reader) (string, error) {
	line, err := in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", errors.New("an endless answer")
	case errors.Is(err, io.EOF):
		return "", errors.New("the connection ended without an answer")
	case err != nil:
		return "", err
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}

// scan implements engine.
func (c *icap) scan(ctx context.Context, o *object) (malware string, err error) {
	options, err := c.asked(ctx)
	if err != nil {
		return "", err
	}
	preview := min(options.preview, int64(c.Preview), o.size)
	err = c.pool.talk(ctx, func(conn *connection) (again bool, err error) {
		malware, again, err = c.show(conn, o, preview)
		return again, err
	})
	return malware, err
}

// show an object on a connection. preview: so much first, -1 everything.
func (c *icap) show(conn *connection, o *object, preview int64) (malware string, again bool, err error) {
	head := c.head(o, preview)
	content := o.open()
	sent := make(chan error, 1)
	go func() { sent <- sendICAP(conn, head, content, preview, o.size) }()
	r, err := readICAP(conn.in)
	if err == nil && r.code == 100 {
		if err = <-sent; err == nil {
			go func() { sent <- sendChunks(conn, content, "") }()
			r, err = readICAP(conn.in)
		}
	}
	if err == nil {
		malware, again, err = c.judge(conn, r, o)
	}
	conn.SetWriteDeadline(time.Now().Add(sentWithin)) // it may have heard enough, and read no more
	if <-sent != nil {
		return malware, false, err
	}
	conn.SetWriteDeadline(time.Time{})
	return malware, again, err
}

// head of the request, with the HTTP header it encapsulates (RFC 3507 section 4.4).
func (c *icap) head(o *object, preview int64) []byte {
	uri := "http://mail.invalid/" + url.PathEscape(o.name)
	request := "GET " + uri + " HTTP/1.1\r\nHost: mail.invalid\r\n\r\n"
	response := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", o.size)
	places := fmt.Sprintf("req-hdr=0, res-hdr=%d, res-body=%d", len(request), len(request)+len(response))
	if c.Method == "reqmod" {
		request = fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: mail.invalid\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", uri, o.size)
		response, places = "", fmt.Sprintf("req-hdr=0, req-body=%d", len(request))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s ICAP/1.0\r\nHost: %s\r\nAllow: 204\r\n", strings.ToUpper(c.Method), c.URL, c.host)
	if preview >= 0 {
		fmt.Fprintf(&b, "Preview: %d\r\n", preview)
	}
	fmt.Fprintf(&b, "Encapsulated: %s\r\n\r\n%s%s", places, request, response)
	return b.Bytes()
}

// sendICAP sends the head and the content, or the preview of it; ieof says that the preview was all (section 4.5).
func sendICAP(conn io.Writer, head []byte, content io.Reader, preview, size int64) error {
	if _, err := conn.Write(head); err != nil {
		return err
	}
	if preview < 0 {
		return sendChunks(conn, content, "")
	}
	end := ""
	if preview == size {
		end = "; ieof"
	}
	return sendChunks(conn, io.LimitReader(content, preview), end)
}

// sendChunks sends all of r, chunked.
func sendChunks(conn io.Writer, r io.Reader, end string) error {
	out, chunk := bufio.NewWriterSize(conn, 64<<10), make([]byte, 32<<10)
	for {
		n, err := io.ReadFull(r, chunk)
		if n > 0 {
			fmt.Fprintf(out, "%x\r\n%s\r\n", n, chunk[:n])
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			fmt.Fprintf(out, "0%s\r\n\r\n", end)
			return out.Flush()
		case err != nil:
			return err
		}
	}
}

// judge an answer. Many servers name what they found in a field of their own; the others let pass, or they do not: by
// anything else than what they were shown.
func (c *icap) judge(conn *connection, r *icapReply, o *object) (malware string, again bool, err error) {
	name, found := infection(r.header)
	switch {
	case r.code != 200 && r.code != 204:
		return "", false, fmt.Errorf("answers %s", r.status)
	case found:
		return name, false, nil
	case r.code == 204:
		return "", r.keeps(), nil
	}
	same, err := c.sameContent(conn.in, r.header.Get("Encapsulated"), o)
	if err != nil || same {
		return "", false, err
	}
	return "blocked by the server", false, nil
}

// infection that the header names: X-Infection-Found, X-Violations-Found, X-Virus-ID.
func infection(h textproto.MIMEHeader) (name string, found bool) {
	if v := h.Get("X-Infection-Found"); v != "" {
		_, threat, _ := strings.Cut(v, "Threat=")
		threat, _, _ = strings.Cut(threat, ";")
		return orUnnamed(threat), true
	}
	if v := h.Get("X-Violations-Found"); v != "" && v != "0" {
		fields := strings.Split(v, "\n") // number; then file, threat, problem and resolution of each
		if len(fields) > 2 {
			return orUnnamed(fields[2]), true
		}
		return orUnnamed(""), true
	}
	if v := h.Get("X-Virus-Id"); v != "" && !strings.EqualFold(v, "no threats") {
		return orUnnamed(v), true
	}
	return "", false
}

func orUnnamed(name string) string {
	if name = strings.TrimSpace(name); name == "" {
		return "unnamed"
	}
	return name
}

// sameContent reports whether the answer encapsulates what was sent.
func (c *icap) sameContent(in *bufio.Reader, places string, o *object) (bool, error) {
	header, hasBody, isResponse, err := parsePlaces(places)
	if err != nil {
		return false, err
	}
	block := make([]byte, header)
	if _, err := io.ReadFull(in, block); err != nil {
		return false, fmt.Errorf("reading what the answer encapsulates: %w", err)
	}
	line, _, _ := bytes.Cut(block, []byte("\r\n"))
	_, status, _ := bytes.Cut(line, []byte(" "))
	if isResponse != (c.Method == "respmod") || isResponse && !bytes.HasPrefix(status, []byte("200")) || !hasBody {
		return false, nil
	}
	return equal(httputil.NewChunkedReader(in), o.open())
}

// parsePlaces reads an Encapsulated field: where the body begins, which is how long the headers are.
func parsePlaces(places string) (header int, hasBody, isResponse bool, err error) {
	for place := range strings.SplitSeq(places, ",") {
		name, at, _ := strings.Cut(strings.TrimSpace(place), "=")
		n, err := strconv.Atoi(at)
		if err != nil || n < 0 || n > maxICAPHeader {
			return 0, false, false, fmt.Errorf("cannot be understood: Encapsulated: %s", clip(places, maxName))
		}
		switch name {
		case "res-body", "req-body":
			header, hasBody = n, true
		case "null-body":
			header = n
		}
		isResponse = isResponse || strings.HasPrefix(name, "res-")
	}
	return header, hasBody, isResponse, nil
}

// equal reports whether two readers have the same octets.
func equal(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 16<<10), make([]byte, 16<<10)
	for {
		n, err := io.ReadFull(a, x)
		m, other := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		switch {
		case other != nil && !errors.Is(other, io.EOF) && !errors.Is(other, io.ErrUnexpectedEOF):
			return false, other
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF) && other != nil:
			return true, nil
		case err != nil:
			return false, err
		}
	}
}
