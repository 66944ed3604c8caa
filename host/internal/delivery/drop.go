package delivery

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
)

// drop writes item into the drop directory of c as a file that the Replay directory of Exchange understands.
// The file has the item's id for its name, so that an attempt repeated after a crash writes the same file.
func (d *Delivery) drop(c *connector, item *queue.Item) []Result {
	path := filepath.Join(c.DropDirectory, item.ID+".eml")
	if err := writeDrop(path, item); err != nil {
		d.log.Error("drop directory", "connector", c.Name, "item", item.ID, "error", err)
		return all(item, envelope.Pending, dropReply(err))
	}
	results := all(item, envelope.Delivered, reply(250, "2.0.0", "written to drop directory"))
	for i := range results {
		results[i].Remote = path
	}
	return results
}

func dropReply(err error) envelope.Reply {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return reply(452, "4.3.1", "no space left in drop directory")
	case errors.Is(err, fs.ErrPermission):
		return reply(451, "4.3.5", "drop directory is not writable")
	}
	return reply(451, "4.3.0", "drop directory cannot be written")
}

// writeDrop makes the file appear whole or not at all: what the rename shows is synced, and so is the rename.
func writeDrop(path string, item *queue.Item) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("making drop directory: %w", err)
	}
	temp := filepath.Join(dir, "."+filepath.Base(path)+".tmp")
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return fmt.Errorf("creating drop file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(temp)
		}
	}()
	if err := writeReplay(f, item); err != nil {
		return fmt.Errorf("writing drop file: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing drop file: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("closing drop file: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("naming drop file: %w", err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening drop directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing drop directory: %w", err)
	}
	return nil
}

// writeReplay writes the envelope as X-Sender and X-Receiver fields, in front of all others, then the message.
func writeReplay(w io.Writer, item *queue.Item) error {
	m := item.Mail
	b := bufio.NewWriterSize(w, 32<<10)
	_, _ = b.WriteString("X-Sender: <" + m.Sender.Address.String() + ">" + replaySender(&m.Sender) + "\r\n")
	for _, r := range pending(item) {
		_, _ = b.WriteString("X-Receiver: <" + r.Address.String() + ">" + replayReceiver(r) + "\r\n")
	}
	_, _ = b.Write(item.Prefix)
	_, _ = b.Write(m.Header)
	_, _ = b.WriteString("\r\n")
	if m.Body != nil {
		if _, err := io.Copy(b, m.Body.Reader()); err != nil {
			return err
		}
	}
	return b.Flush()
}

func replaySender(s *envelope.Sender) string {
	var b strings.Builder
	writeParam(&b, "BODY", s.BodyType)
	writeParam(&b, "RET", s.Ret)
	writeParam(&b, "ENVID", xtext(s.EnvID))
	return b.String()
}

func replayReceiver(r *envelope.Recipient) string {
	var b strings.Builder
	writeParam(&b, "NOTIFY", notifyWords(r.Notify))
	writeParam(&b, "ORcpt", orcptParam(r.ORCPT, false))
	return b.String()
}
