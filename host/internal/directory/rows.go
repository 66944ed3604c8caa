package directory

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/address"
)

// maxFaults is how many mistakes of one file are told.
const maxFaults = 20

// rows of the three tables, collected from all documents.
type rows struct {
	recipients map[string]recipientRow
	groups     map[string]groupRow
	safelist   map[string]safelistRow
	places     map[string]string // of recipients: where they were named
	hashes     []hashing
}

func newRows() *rows {
	return &rows{
		recipients: map[string]recipientRow{},
		groups:     map[string]groupRow{},
		safelist:   map[string]safelistRow{},
		places:     map[string]string{},
	}
}

// add checks the entries of doc and makes their rows. The error joins all mistakes.
func (r *rows) add(doc *document) error {
	var faults []error
	a := adder{rows: r, document: doc}
	for _, e := range doc.entries {
		if err := a.entry(e); err != nil {
			if faults = append(faults, err); len(faults) == maxFaults {
				faults = append(faults, fmt.Errorf("%s: and perhaps more", doc.file))
				break
			}
		}
	}
	if doc.hashed && a.octets > 0 {
		r.hashes = append(r.hashes, hashing{doc.key, a.octets})
	}
	return errors.Join(faults...)
}

// adder makes the rows of one document.
type adder struct {
	*rows
	*document
	octets int // length of the hashes
}

func (a *adder) entry(e entry) error {
	if domain, ok := strings.CutPrefix(e.address.text, "@"); ok {
		name, err := address.ParseDomain(domain)
		if err != nil {
			return a.fault(e.address.at, "%s", err)
		}
		a.recipients["@"+address.ASCIIDomain(name)] = recipientRow{Domain: true}
		return nil
	}
	primary, err := a.key(e.address)
	if err != nil {
		return err
	}
	row := recipientRow{Group: e.group}
	if !a.hashed {
		row.Address = e.address.text
	}
	if err := a.recipient(e.address, primary, row); err != nil {
		return err
	}
	keys := []string{primary}
	for _, alias := range e.lists[aliasesColumn] {
		key, err := a.key(alias)
		if err == nil {
			err = a.recipient(alias, key, row)
		}
		if err != nil {
			return err
		}
		keys = append(keys, key)
	}
	if e.group {
		if err := a.group(keys, e.lists[membersColumn]); err != nil {
			return err
		}
	}
	if err := a.senders(keys, "safe", e.lists[safeColumn]); err != nil {
		return err
	}
	return a.senders(keys, "blocked", e.lists[blockedColumn])
}

// key of an address, and in a plain directory the mark that its domain is known.
func (a *adder) key(v value) (string, error) {
	if a.hashed {
		return a.hash(v)
	}
	m, err := address.Parse(v.text)
	if err != nil || m.Domain == "" {
		return "", a.fault(v.at, "%q is no address", v.text)
	}
	a.recipients["@"+address.ASCIIDomain(m.Domain)] = recipientRow{Domain: true}
	return m.Key(), nil
}

func (a *adder) hash(v value) (string, error) {
	if !isHash(v.text) {
		return "", a.fault(v.at, "%q is no hash: %d to 64 hexadecimal digits", v.text, 2*minHash)
	}
	n := hex.DecodedLen(len(v.text))
	if a.octets == 0 {
		a.octets = n
	}
	if n != a.octets {
		return "", a.fault(v.at, "this hash has %d octets, others have %d", n, a.octets)
	}
	return strings.ToLower(v.text), nil
}

// recipient adds one address, which nobody else may have.
func (a *adder) recipient(v value, key string, row recipientRow) error {
	if where, ok := a.places[key]; ok {
		return a.fault(v.at, "%q is there already, at %s", v.text, where)
	}
	a.places[key] = fmt.Sprintf("%s:%d:%d", a.file, v.at.line, v.at.column)
	a.recipients[key] = row
	return nil
}

// group adds the members under each address of the group. Members are plain addresses in every directory: mail
// is sent to them.
func (a *adder) group(keys []string, members []value) error {
	row := groupRow{Members: make([]string, 0, len(members))}
	for _, v := range members {
		m, err := address.Parse(v.text)
		if err != nil || m.Domain == "" {
			return a.fault(v.at, "member %q is no address", v.text)
		}
		row.Members = append(row.Members, m.String())
	}
	for _, key := range keys {
		a.groups[key] = row
	}
	return nil
}

// senders adds what recipients think of senders. In a hashed directory the values are hashes already.
func (a *adder) senders(keys []string, list string, senders []value) error {
	for _, v := range senders {
		if a.hashed {
			key, err := a.hash(v)
			if err != nil {
				return err
			}
			a.safelist[key] = safelistRow{List: list}
			continue
		}
		sender, err := senderKey(v.text)
		if err != nil {
			return a.fault(v.at, "%q is neither an address nor a domain", v.text)
		}
		for _, key := range keys {
			a.safelist[key+"|"+sender] = safelistRow{List: list}
		}
	}
	return nil
}

// senderKey of "a@x.example", "x.example" or "@x.example".
func senderKey(text string) (string, error) {
	if strings.Index(text, "@") > 0 {
		m, err := address.Parse(text)
		return m.Key(), err
	}
	domain, err := address.ParseDomain(strings.TrimPrefix(text, "@"))
	return address.ASCIIDomain(domain), err
}

// replace the content of the tables.
func (r *rows) replace(t tables.Store) {
	t.Replace(groupsTable, encode(r.groups))
	t.Replace(safelistTable, encode(r.safelist))
	list := encode(r.recipients)
	for _, h := range r.hashes {
		list = append(list, h.row())
	}
	t.Replace(recipientsTable, list)
}

func encode[T any](m map[string]T) []tables.Row {
	out := make([]tables.Row, 0, len(m))
	for key, v := range m {
		value, _ := json.Marshal(v) // strings and booleans only
		out = append(out, tables.Row{Key: key, Value: value})
	}
	return out
}
