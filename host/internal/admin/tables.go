package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/tables"
)

func (a *api) tables(*http.Request) (any, error) {
	list := []Table{}
	for name, rows := range a.Tables.Names() {
		list = append(list, Table{Name: name, Rows: rows})
	}
	slices.SortFunc(list, func(a, b Table) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (a *api) rows(r *http.Request) (any, error) {
	limit, err := limitOf(r)
	if err != nil {
		return nil, err
	}
	page := Rows{Table: r.PathValue("table"), Rows: []Row{}}
	prefix := r.FormValue("prefix")
	a.Tables.List(page.Table, r.FormValue("after"), func(row tables.Row) bool {
		if !strings.HasPrefix(row.Key, prefix) {
			return row.Key < prefix // keys are in order: those with the prefix are neighbours
		}
		if len(page.Rows) == limit {
			page.More = true
			return false
		}
		page.Rows = append(page.Rows, describeRow(row))
		return true
	})
	return page, nil
}

func describeRow(row tables.Row) Row {
	r := Row{Key: row.Key, Value: string(row.Value), Created: row.Created}
	if !row.Expires.IsZero() {
		r.Expires = &row.Expires
	}
	return r
}

// row answers with the row under a key, or, unless exact is asked for, with the longest prefix that holds it where
// the key is an address.
func (a *api) row(r *http.Request) (any, error) {
	table, key := r.PathValue("table"), r.FormValue("key")
	row, found := a.Tables.Get(table, key)
	if !found && r.FormValue("exact") == "" {
		if addr, err := netip.ParseAddr(key); err == nil {
			row, found = a.Tables.Match(table, addr)
		}
	}
	if !found {
		return nil, notFound("table %s has no row %q", table, key)
	}
	return describeRow(row), nil
}

func (a *api) deleteRow(r *http.Request) (any, error) {
	table, key := r.PathValue("table"), r.FormValue("key")
	row, found := a.Tables.Get(table, key)
	if !found {
		return nil, notFound("table %s has no row %q", table, key)
	}
	a.Tables.Apply([]tables.Write{{Table: table, Key: key, Op: tables.Delete}})
	return describeRow(row), nil
}

// putRows puts all rows of the request, or none where one is wrong.
func (a *api) putRows(r *http.Request) (any, error) {
	table := r.PathValue("table")
	if err := checkTable(table); err != nil {
		return nil, err
	}
	var rows []RowWrite
	if err := readJSON(r, &rows); err != nil {
		return nil, err
	}
	writes := make([]tables.Write, 0, len(rows))
	for i, row := range rows {
		w, err := writeOf(table, row)
		if err != nil {
			return nil, badRequest("row %d (%s): %v", i+1, row.Key, err)
		}
		writes = append(writes, w)
	}
	a.Tables.Apply(writes)
	return Table{Name: table, Rows: len(writes)}, nil
}

// checkTable refuses what the host fills itself: the next look at the directory would undo the change.
func checkTable(name string) error {
	if slices.Contains([]string{"recipients", "groups", "safelist"}, name) {
		return &failure{http.StatusConflict, Problem{Error: fmt.Sprintf("table %s is filled from the directory", name),
			Hint: "change the file of the directory block"}}
	}
	return nil
}

// maxValue is the largest value of a row in bytes, see the agent protocol.
const maxValue = 4 << 10

// isNetwork tells whether a key of ip-block can ever match a client.
func isNetwork(key string) bool {
	if _, err := netip.ParseAddr(key); err == nil {
		return true
	}
	_, err := netip.ParsePrefix(key)
	return err == nil
}

func writeOf(table string, row RowWrite) (tables.Write, error) {
	w := tables.Write{Table: table, Key: row.Key, Op: tables.Put, Value: []byte(row.Value)}
	if row.Key == "" {
		return w, fmt.Errorf("the key is empty")
	}
	if row.Value == "" {
		w.Value = []byte("{}")
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(w.Value, &object); err != nil {
		return w, fmt.Errorf("the value is not a JSON object: %w", err)
	}
	if len(w.Value) > maxValue {
		return w, fmt.Errorf("the value has %d bytes, %d are allowed", len(w.Value), maxValue)
	}
	if table == "ip-block" && !isNetwork(row.Key) {
		return w, fmt.Errorf("the key is neither an address nor a prefix such as 192.0.2.0/24")
	}
	if row.TTL == "" {
		return w, nil
	}
	ttl, err := config.ParseDuration(row.TTL)
	if err != nil {
		return w, fmt.Errorf("ttl: %w", err)
	}
	if ttl < time.Second {
		return w, fmt.Errorf("ttl %s is shorter than a second", row.TTL)
	}
	w.TTL = ttl
	return w, nil
}
