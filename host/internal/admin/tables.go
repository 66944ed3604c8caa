package admin

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
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

// tableOf is the table that a request names. A name that is no table's is most likely mistyped: its rows would be read by
// nobody.
func (a *api) tableOf(r *http.Request) (string, error) {
	name := r.PathValue("table")
	known := a.tableNames()
	if slices.Contains(known, name) || a.mayHave(name) {
		return name, nil
	}
	hint := "postern table list shows those that have rows; those of an agent are called AGENT/NAME"
	if near := config.Suggestion(name, known); near != "" {
		hint = strings.TrimPrefix(near, "; ")
	}
	return "", &failure{http.StatusNotFound, Problem{Error: fmt.Sprintf("there is no table %q", name), Hint: hint}}
}

// tableNames are the tables with rows, the host's own and those that agents declare.
func (a *api) tableNames() []string {
	names := append(slices.Collect(maps.Keys(a.Tables.Names())), slices.Collect(maps.Keys(pipeline.SharedTables()))...)
	for _, one := range a.Agents.List() {
		for _, e := range one.Events {
			for _, what := range slices.Concat(e.Reads, e.Changes) {
				if table, ok := strings.CutPrefix(what, "table "); ok {
					names = append(names, pipeline.TableName(one.Name, table))
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// mayHave reports whether name is in the realm of an agent that does not run, so that nobody can tell what it declares.
func (a *api) mayHave(name string) bool {
	label, _, found := strings.Cut(name, "/")
	return found && slices.ContainsFunc(a.Agents.List(), func(one Agent) bool { return one.Name == label && len(one.Events) == 0 })
}

func (a *api) rows(r *http.Request) (any, error) {
	table, err := a.tableOf(r)
	if err != nil {
		return nil, err
	}
	limit, err := limitOf(r)
	if err != nil {
		return nil, err
	}
	page := Rows{Table: table, Rows: []Row{}}
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
	table, err := a.tableOf(r)
	if err != nil {
		return nil, err
	}
	key := r.FormValue("key")
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
	table, err := a.tableOf(r)
	if err != nil {
		return nil, err
	}
	key := r.FormValue("key")
	row, found := a.Tables.Get(table, key)
	if !found {
		return nil, notFound("table %s has no row %q", table, key)
	}
	a.Tables.Apply([]tables.Write{{Table: table, Key: key, Op: tables.Delete}})
	return describeRow(row), nil
}

// putRows puts all rows of the request, or none where one is wrong.
func (a *api) putRows(r *http.Request) (any, error) {
	table, err := a.tableOf(r)
	if err != nil {
		return nil, err
	}
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
