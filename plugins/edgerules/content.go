package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/net/html"

	"github.com/posternmail/postern/sdk/mime"
)

// content of a body as conditions look at it.
type content struct {
	text        string // of all text parts, decoded; markup taken out of HTML
	attachments []attachment
}

// attachment of a message.
type attachment struct {
	name         string   // that is told
	names, types []string // all that a reader might take for its own
	size         int64    // decoded, in bytes
}

// How much decoded text of a part and of a message is looked at, in octets.
const (
	maxPart = 256 << 10
	maxAll  = 1 << 20
)

func readContent(ctx context.Context, header []byte, body mime.Body) (*content, error) {
	tree, err := mime.Parse(ctx, header, body, mime.Limits{})
	switch {
	case errors.Is(err, mime.ErrTooDeep), errors.Is(err, mime.ErrTooMany), errors.Is(err, mime.ErrTooLarge):
		return nil, fmt.Errorf("%w: %w", errTooLarge, err)
	case err != nil:
		return nil, err
	}
	c := &content{}
	var text strings.Builder
	for p := range tree.Leaves() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if p.IsAttachment() {
			c.attach(p)
		}
		if strings.HasPrefix(p.Type, "text/") && p.Disposition != "attachment" && text.Len() < maxAll {
			if err := addText(&text, p); err != nil {
				return nil, err
			}
		}
	}
	c.text = text.String()
	return c, nil
}

func (c *content) attach(p *mime.Part) {
	size, err := io.Copy(io.Discard, p.Decoded())
	if err != nil { // what does not decode has the size that it has
		size = p.Raw().Size()
	}
	c.attachments = append(c.attachments, attachment{name: p.Filename, names: p.Names(), types: p.Types(), size: size})
}

func addText(b *strings.Builder, p *mime.Part) error {
	text, _, err := p.DecodedText(maxPart)
	if err != nil {
		return err
	}
	if p.Type == "text/html" {
		text = plain(text)
	}
	b.WriteString(text)
	b.WriteByte('\n')
	return nil
}

// blocks are elements between which there is a space, whatever the markup says.
const blocks = " p br div td th tr li ul ol h1 h2 h3 h4 h5 h6 table hr title body "

// plain is the text of an HTML document.
func plain(document string) string {
	var b strings.Builder
	z := html.NewTokenizer(strings.NewReader(document))
	hidden := ""
	for {
		switch z.Next() {
		case html.ErrorToken:
			return b.String()
		case html.TextToken:
			if hidden == "" {
				b.WriteString(html.UnescapeString(string(z.Raw())))
			}
		case html.StartTagToken:
			name, _ := z.TagName()
			if tag := string(name); tag == "script" || tag == "style" {
				hidden = tag
			} else {
				gap(&b, tag)
			}
		case html.EndTagToken, html.SelfClosingTagToken:
			name, _ := z.TagName()
			if string(name) == hidden {
				hidden = ""
			}
			gap(&b, string(name))
		}
	}
}

func gap(b *strings.Builder, tag string) {
	if strings.Contains(blocks, " "+tag+" ") {
		b.WriteByte(' ')
	}
}
