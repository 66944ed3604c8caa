package command

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/posternmail/postern/host/internal/admin"
)

func tableCommand(a *app) *command {
	return &command{name: "table", short: "Look at the tables that agents share, and change rows.", subs: []*command{
		tableListCommand(a), tableGetCommand(a), tableSetCommand(a), tableDeleteCommand(a), tableImportCommand(a),
	}}
}

func tablePath(name string) string { return "/v1/tables/" + url.PathEscape(name) }

func tableListCommand(a *app) *command {
	var prefix, after string
	var limit int
	return &command{
		name: "list", args: "[TABLE]", short: "List the tables, or the rows of one.", max: 1, json: true, host: true,
		flags: func(f *flag.FlagSet) {
			f.StringVar(&prefix, "prefix", "", "only rows whose key begins with `TEXT`")
			f.StringVar(&after, "after", "", "rows behind this `KEY`")
			f.IntVar(&limit, "limit", 100, "list at most `N` rows, 0: all")
		},
		run: func(ctx context.Context, args []string) error {
			if len(args) == 0 {
				return a.listTables(ctx)
			}
			return a.listRows(ctx, args[0], url.Values{"prefix": {prefix}, "after": {after}, "limit": {fmt.Sprint(limit)}})
		},
	}
}

func (a *app) listTables(ctx context.Context) error {
	var list []admin.Table
	if err := a.get(ctx, "/v1/tables", nil, &list); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(list)
	}
	t := columns("TABLE", "ROWS>")
	for _, one := range list {
		t.row(one.Name, fmt.Sprint(one.Rows))
	}
	a.list(t, "no table has rows")
	return nil
}

func (a *app) listRows(ctx context.Context, name string, query url.Values) error {
	var page admin.Rows
	if err := a.get(ctx, tablePath(name), query, &page); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(page)
	}
	t := columns("KEY", "VALUE", "CREATED", "EXPIRES")
	for _, r := range page.Rows {
		t.row(r.Key, r.Value, stamp(r.Created), stampOr(r.Expires, "never"))
	}
	a.list(t, "no rows")
	if page.More {
		fmt.Fprintf(a.stderr, "more rows follow; --limit 0 shows all, --after %q the next\n", printable(page.Rows[len(page.Rows)-1].Key))
	}
	return nil
}

func tableGetCommand(a *app) *command {
	return &command{
		name: "get", args: "TABLE KEY", short: "Show one row. For an address, the row of the longest prefix that holds it.",
		min: 2, max: 2, json: true, host: true,
		run: func(ctx context.Context, args []string) error {
			var row admin.Row
			if err := a.get(ctx, tablePath(args[0])+"/row", url.Values{"key": {args[1]}}, &row); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(row)
			}
			facts := &table{}
			facts.row("key", row.Key)
			facts.row("value", row.Value)
			facts.row("created", stamp(row.Created))
			facts.row("expires", stampOr(row.Expires, "never"))
			facts.print(a.stdout, 0)
			return nil
		},
	}
}

func tableSetCommand(a *app) *command {
	var ttl string
	return &command{
		name: "set", args: "TABLE KEY [VALUE]", short: "Put a row.", long: "VALUE is a JSON object; without it the row is {}.",
		min: 2, max: 3, json: true, host: true,
		flags: func(f *flag.FlagSet) {
			f.StringVar(&ttl, "ttl", "", "the row leaves after this `TIME`, such as 30d; without it never")
		},
		run: func(ctx context.Context, args []string) error {
			row := admin.RowWrite{Key: args[1], TTL: ttl}
			if len(args) == 3 {
				row.Value = args[2]
			}
			var written admin.Table
			if err := a.post(ctx, tablePath(args[0]), []admin.RowWrite{row}, &written); err != nil {
				return err
			}
			return a.done(written, "put %s in %s", args[1], args[0])
		},
	}
}

func tableDeleteCommand(a *app) *command {
	return &command{
		name: "delete", args: "TABLE KEY", short: "Delete one row.", min: 2, max: 2, json: true, host: true,
		run: func(ctx context.Context, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			var row admin.Row
			err = a.explained(c.Delete(ctx, tablePath(args[0])+"/row", url.Values{"key": {args[1]}}, &row))
			if err != nil {
				return err
			}
			return a.done(row, "deleted %s from %s", args[1], args[0])
		},
	}
}

// done says that something was done, or prints the answer as JSON.
func (a *app) done(answer any, format string, args ...string) error {
	if a.json {
		return a.printJSON(answer)
	}
	clean := make([]any, len(args))
	for i, arg := range args {
		clean[i] = printable(arg)
	}
	a.printf(format+"\n", clean...)
	return nil
}

// importBatch is how many rows go to the host at once.
const importBatch = 1000

func tableImportCommand(a *app) *command {
	var ttl string
	return &command{
		name: "import", args: "TABLE FILE", short: "Put the rows of a file.",
		long: "FILE.csv has a head whose first column is the key; the others become fields of the value. FILE.jsonl has\n" +
			"{\"key\": ..., \"value\": {...}} on each line. Anything else is a list of keys, a line each, # begins a comment.",
		min: 2, max: 2, json: true, host: true,
		flags: func(f *flag.FlagSet) {
			f.StringVar(&ttl, "ttl", "", "the rows leave after this `TIME`, such as 30d; without it never")
		},
		run: func(ctx context.Context, args []string) error {
			rows, err := readRows(args[1])
			if err != nil {
				return err
			}
			for i := range rows {
				if rows[i].TTL == "" {
					rows[i].TTL = ttl
				}
			}
			return a.importRows(ctx, args[0], rows)
		},
	}
}

func (a *app) importRows(ctx context.Context, name string, rows []admin.RowWrite) error {
	for start := 0; start < len(rows); start += importBatch {
		batch := rows[start:min(start+importBatch, len(rows))]
		var written admin.Table
		if err := a.post(ctx, tablePath(name), batch, &written); err != nil {
			return fmt.Errorf("after %s: %w", plural(start, "row"), err)
		}
		a.progress("%d of %d rows", start+len(batch), len(rows))
	}
	a.progressEnd()
	return a.done(admin.Table{Name: name, Rows: len(rows)}, "put %s in %s", plural(len(rows), "row"), name)
}

func readRows(path string) ([]admin.RowWrite, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer file.Close()
	read := readKeys
	switch filepath.Ext(path) {
	case ".csv":
		read = readCSV
	case ".jsonl", ".json", ".ndjson":
		read = readJSONLines
	}
	rows, err := read(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return rows, nil
}

func readKeys(r io.Reader) ([]admin.RowWrite, error) {
	var rows []admin.RowWrite
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if key := strings.TrimSpace(line); key != "" {
			rows = append(rows, admin.RowWrite{Key: key})
		}
	}
	return rows, lines.Err()
}

func readCSV(r io.Reader) ([]admin.RowWrite, error) {
	records := csv.NewReader(r)
	head, err := records.Read()
	if err != nil {
		return nil, fmt.Errorf("reading the head: %w", err)
	}
	var rows []admin.RowWrite
	for {
		record, err := records.Read()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, err
		}
		row, err := csvRow(head, record)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
}

func csvRow(head, record []string) (admin.RowWrite, error) {
	fields := map[string]string{}
	for i := 1; i < len(record); i++ {
		if record[i] != "" {
			fields[head[i]] = record[i]
		}
	}
	value, err := json.Marshal(fields)
	if err != nil {
		return admin.RowWrite{}, fmt.Errorf("row %s: %w", record[0], err)
	}
	return admin.RowWrite{Key: record[0], Value: string(value)}, nil
}

func readJSONLines(r io.Reader) ([]admin.RowWrite, error) {
	var rows []admin.RowWrite
	decoder := json.NewDecoder(r)
	for {
		var row struct {
			Key   string          `json:"key"`
			Value json.RawMessage `json:"value"`
			TTL   string          `json:"ttl"`
		}
		err := decoder.Decode(&row)
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("row %d: %w", len(rows)+1, err)
		}
		rows = append(rows, admin.RowWrite{Key: row.Key, Value: string(row.Value), TTL: row.TTL})
	}
}
