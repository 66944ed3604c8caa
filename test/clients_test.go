package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// run executes a program and fails the test with what it printed.
func run(t *testing.T, dir string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// hostPort splits an address for clients that want it in two words.
func hostPort(addr string) (host, port string) {
	host, port, _ = strings.Cut(addr, ":")
	return host, port
}

// TestCurl sends with curl, plain and with STARTTLS.
func TestCurl(t *testing.T) {
	h := rig.Start(t, plain)
	mail := filepath.Join(t.TempDir(), "mail.eml")
	if err := os.WriteFile(mail, []byte("From: a@sender.example\r\nTo: b@example.org\r\nSubject: curl\r\n\r\n.leading dot\r\nend\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, extra := range [][]string{nil, {"--ssl-reqd", "--insecure"}} {
		run(t, "", "curl", append([]string{"-sS", "--url", "smtp://" + h.Addr + "/client.example", "--mail-from", "a@sender.example",
			"--mail-rcpt", "b@example.org", "--upload-file", mail}, extra...)...)
	}
	for _, m := range h.WaitDropped(2) {
		if !strings.HasSuffix(m, "\r\n\r\n.leading dot\r\nend\r\n") {
			t.Errorf("not what curl has sent:\n%s", m)
		}
	}
}

// TestSmtplib sends with Python's smtplib: STARTTLS, DSN parameters, SMTPUTF8.
func TestSmtplib(t *testing.T) {
	h := rig.Start(t, plain)
	host, port := hostPort(h.Addr)
	run(t, "", "python3", "-c", `
import smtplib, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with smtplib.SMTP(sys.argv[1], int(sys.argv[2]), local_hostname="client.example") as s:
    s.starttls(context=context)
    s.sendmail("a@sender.example", ["b@example.org"], "Subject: one\r\n\r\nx\r\n",
               mail_options=["BODY=8BITMIME", "RET=HDRS", "ENVID=abc"], rcpt_options=["NOTIFY=NEVER"])
    s.sendmail("jörg@sender.example", ["b@example.org"], "Subject: zwei\r\n\r\nx\r\n", mail_options=["SMTPUTF8"])
    assert s.noop()[0] == 250 and s.vrfy("b@example.org")[0] in (252, 502), "noop, vrfy"
`, host, port)
	all := strings.Join(h.WaitDropped(2), "\n")
	for _, want := range []string{"ENVID=abc", "RET=HDRS", "NOTIFY=NEVER", "jörg@sender.example"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q did not reach the drop directory:\n%s", want, all)
		}
	}
}

// TestNodemailer sends with nodemailer, which npm installs. It pipelines nothing and wants proper EHLO replies.
func TestNodemailer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run(t, dir, "npm", "install", "--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--silent", "nodemailer@7")
	if t.Failed() {
		t.Fatal("this test needs npm and its registry")
	}
	h := rig.Start(t, plain)
	host, port := hostPort(h.Addr)
	script := `
const transport = require("nodemailer").createTransport({host: process.argv[2], port: +process.argv[3], name: "client.example", tls: {rejectUnauthorized: false}});
transport.sendMail({from: "a@sender.example", to: "b@example.org", subject: "ünïcode", text: "hello", html: "<b>hello</b>", attachments: [{filename: "a.txt", content: "attached"}]})
  .then(info => { if (!info.response.startsWith("250")) throw new Error(info.response); transport.close(); })
  .catch(e => { console.error(e); process.exit(1); });
`
	if err := os.WriteFile(filepath.Join(dir, "send.js"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "node", "send.js", host, port)
	if got := h.WaitDropped(1)[0]; !strings.Contains(got, "filename=a.txt") {
		t.Errorf("the attachment is not in\n%s", got)
	}
}
