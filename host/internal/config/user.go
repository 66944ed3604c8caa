package config

import (
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/posternmail/postern/host/internal/sandbox"
)

// LookupUser finds what host { user } names: "name", "name:group" or "uid:gid". Numbers need no entry in the system's
// files. The error says what is wrong with it.
func LookupUser(text string) (c sandbox.Credential, err error) {
	name, group, grouped := strings.Cut(text, ":")
	found, err := user.Lookup(name)
	switch uid, wrong := number(name); {
	case err == nil:
		c.UID, _ = number(found.Uid)
		c.GID, _ = number(found.Gid)
		c.Groups = groupsOf(found)
	case wrong == nil && grouped:
		c.UID = uid
	case wrong == nil:
		return c, fmt.Errorf("user %s has no name on this system: write \"%s:GROUP\"", name, name)
	default:
		return c, fmt.Errorf("there is no user %q on this system; make one: useradd --system --user-group --no-create-home --shell /usr/sbin/nologin %s", name, name)
	}
	if grouped {
		if c.GID, err = groupID(group); err != nil {
			return c, err
		}
		c.Groups = slices.DeleteFunc(c.Groups, func(g uint32) bool { return g == 0 })
	}
	return c, refusedUser(c)
}

func refusedUser(c sandbox.Credential) error {
	switch {
	case c.UID == 0 || c.GID == 0 || slices.Contains(c.Groups, 0):
		return fmt.Errorf("user %d of group %d is root or of its group: leave user out to run as root", c.UID, c.GID)
	case sandbox.Reserved(c.UID) || sandbox.Reserved(c.GID):
		return fmt.Errorf("user %d of group %d: numbers from 63000 to 64000 are for agents", c.UID, c.GID)
	}
	return nil
}

func number(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	return uint32(n), err
}

func groupID(text string) (uint32, error) {
	if found, err := user.LookupGroup(text); err == nil {
		return number(found.Gid)
	}
	n, err := number(text)
	if err != nil {
		return 0, fmt.Errorf("there is no group %q on this system", text)
	}
	return n, nil
}

// groupsOf are those that a user is in.
func groupsOf(u *user.User) (groups []uint32) {
	ids, _ := u.GroupIds()
	for _, id := range ids {
		if n, err := number(id); err == nil {
			groups = append(groups, n)
		}
	}
	return groups
}

// checkUser looks whether the host can be who it is to be.
func (l *loader) checkUser(n *node) {
	if !n.set("user") || n.value("user").bad {
		return
	}
	at := n.rangeOf("user")
	c, err := LookupUser(n.str("user"))
	if err != nil {
		l.diags.errorf(at, "user: %v", err)
		return
	}
	if uid := os.Geteuid(); uid != 0 && uint32(uid) != c.UID {
		l.diags.errorf(at, "user: user %d cannot become user %d: start the host as root, or as that user, or leave user out", uid, c.UID)
	}
}

// Identity finds user and data_dir in the files of a configuration, without asking an agent: for the process that is to
// start a host as that user. user is "" where there is none, or where the files have mistakes that hide it; the host
// then says what is wrong.
func Identity(path string) (user, dataDir string) {
	l := newLoader(Options{})
	names, err := configFiles(path)
	if err != nil {
		return "", ""
	}
	for _, name := range names {
		l.read(name)
	}
	l.collectLocals()
	l.root = l.decodeRoot()
	host := l.root.one("host")
	return host.str("user"), host.str("data_dir")
}
