package test

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/posternmail/postern/internal/lack"
	"github.com/posternmail/postern/test/rig"
)

// TestPosternNextHop relays through a second host: what the first accepts with DSN and SMTPUTF8 parameters, the
// second gets with them.
func TestPosternNextHop(t *testing.T) {
	second := rig.Start(t, plain)
	first := rig.Start(t, relay(second.Addr))
	c := first.Greeted()
	c.Do("MAIL FROM:<jörg@sender.example> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=id+2B1", "250")
	c.Do("RCPT TO:<b@example.org> NOTIFY=FAILURE ORCPT=rfc822;b@example.org", "250")
	content := "Subject: grüße\r\n\r\nline\r\n..two dots\r\n\x00nul\r\n"
	if got := c.Data(content); !strings.HasPrefix(got, "250") {
		t.Fatalf("got %q", got)
	}
	got := second.WaitDropped(1)[0]
	for _, want := range []string{"X-Sender: <jörg@sender.example>", "RET=HDRS", "ENVID=id+2B1", "NOTIFY=FAILURE", content} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%q", want, got)
		}
	}
}

// TestPostfixNextHop relays to Postfix, which delivers to a mailbox. It needs Postfix installed, and root to start
// it.
func TestPostfixNextHop(t *testing.T) {
	t.Parallel()
	addr, mailbox := startPostfix(t)
	h := rig.Start(t, relay(addr))
	c := h.Greeted()
	content := "Subject: for Postfix\r\n\r\nline\r\n.dot\r\n"
	for i := range 5 {
		if got := c.Message("a@sender.example", fmt.Sprintf("b%d@example.org", i), content); !strings.HasPrefix(got, "250") {
			t.Fatalf("got %q", got)
		}
	}
	if got := c.Message("a@sender.example", "refused@example.org", content); !strings.HasPrefix(got, "250") {
		t.Fatalf("got %q", got)
	}
	var files []string
	h.WaitFor("five messages in the mailbox", func() bool {
		files, _ = filepath.Glob(filepath.Join(mailbox, "new", "*"))
		return len(files) == 5
	})
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if got := string(b); !strings.Contains(got, "by edge.example") || !strings.HasSuffix(got, "\n\nline\n.dot\n") {
		t.Errorf("the mailbox has\n%s", got)
	}
	h.WaitFor("a notification about the refused recipient", func() bool {
		out := h.MustPostern("track", "--json")
		return strings.Contains(out, `"DSN"`) && strings.Contains(out, "5.1.1")
	})
}

// startPostfix starts an instance of its own that delivers example.org into a Maildir.
func startPostfix(t *testing.T) (addr, mailbox string) {
	t.Helper()
	owner, err := user.Lookup("postfix")
	if err != nil || os.Geteuid() != 0 {
		lack.Of(t, "Postfix (package postfix), and root to start it: %v", err)
	}
	dir, err := os.MkdirTemp("/tmp", "pf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(dir, 0o755))
	uid, _ := strconv.Atoi(owner.Uid)
	gid, _ := strconv.Atoi(owner.Gid)
	for _, d := range []string{"etc", "data", "spool", "mail"} {
		must(os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	must(os.Chown(filepath.Join(dir, "data"), uid, -1))
	must(os.Chown(filepath.Join(dir, "mail"), uid, gid))
	addr = rig.FreeAddr(t)
	must(os.WriteFile(filepath.Join(dir, "etc", "main.cf"), []byte(fmt.Sprintf(`compatibility_level = 3.6
queue_directory = %[1]s/spool
data_directory = %[1]s/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = hub.example
mydestination =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
virtual_mailbox_domains = example.org
virtual_mailbox_base = %[1]s/mail
virtual_mailbox_maps = regexp:%[1]s/etc/mailboxes
virtual_minimum_uid = 1
virtual_uid_maps = static:%[2]d
virtual_gid_maps = static:%[3]d
maillog_file = %[1]s/maillog
maillog_file_prefixes = %[1]s
`, dir, uid, gid)), 0o644))
	must(os.WriteFile(filepath.Join(dir, "etc", "mailboxes"), []byte("/^b[0-9]+@/ box/\n"), 0o644))
	master, err := os.ReadFile("/usr/share/postfix/master.cf.dist")
	must(err)
	master = regexp.MustCompile(`(?m)^smtp(\s+inet\s.*)$`).ReplaceAll(master, []byte(addr+"$1"))
	master = regexp.MustCompile(`(?m)^(\S+\s+(?:inet|unix|unix-dgram|fifo|pass)\s+\S+\s+\S+\s+)y(\s)`).ReplaceAll(master, []byte("${1}n$2"))
	must(os.WriteFile(filepath.Join(dir, "etc", "master.cf"), master, 0o644))
	postfix := func(command string) {
		if out, err := exec.Command("/usr/sbin/postfix", "-c", filepath.Join(dir, "etc"), command).CombinedOutput(); err != nil {
			t.Errorf("postfix %s: %v\n%s", command, err, out)
		}
	}
	postfix("start")
	t.Cleanup(func() { postfix("stop") })
	return addr, filepath.Join(dir, "mail", "box")
}
