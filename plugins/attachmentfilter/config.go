package main

import (
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, messages with files of the default list are refused.
type Config struct {
	DefaultList bool     `hcl:"default_list,optional" default:"true" doc:"Files of the default list, which is below, are unwanted."`
	Names       []string `hcl:"names,optional" doc:"More names: whole ones, or patterns with * and ?. A pattern *.EXTENSION counts for content of that kind too, however the file is named, for the kinds below." example:"[\"*.iso\"]"`
	Types       []string `hcl:"types,optional" doc:"More media types: type/subtype or type/*." example:"[\"application/x-iso9660-image\"]"`
	Action      string   `hcl:"action,optional" default:"reject" one_of:"reject strip silent_delete quarantine" doc:"What happens to messages with files of the default list, names and types."`
	Entries     []Entry  `hcl:"entry,block" doc:"Files with an action of their own. The first entry that a file matches decides for it, before the lists above."`
	Encrypted   string   `hcl:"encrypted,optional" default:"allow" one_of:"allow reject strip quarantine" doc:"What happens to archives with a password, whose content cannot be looked at. The names in them are judged in any case, where they can be read, and the ledger tells."`
	Broken      string   `hcl:"broken,optional" default:"allow" one_of:"allow reject strip quarantine" doc:"What happens to archives that cannot be read to their end, or that are packed in a way which is not known here."`
	Unscannable string   `hcl:"unscannable,optional" default:"allow" one_of:"allow reject strip quarantine" doc:"What happens to archives of kinds that are not looked into: those below."`
	OverLimit   string   `hcl:"over_limit,optional" default:"reject" one_of:"allow reject quarantine" doc:"What happens to messages whose archives or parts go over a limit."`
	Response    string   `hcl:"response,optional" default:"Message rejected due to unacceptable attachments" doc:"Text of a refusal, up to 240 characters."`
	Notice      string   `hcl:"notice,optional" default:"The attachment {name} was removed by the mail server: {reason}." doc:"Text that stands in the place of a file that was stripped. {name} is the file, {reason} why."`
	MaxDepth    int      `hcl:"max_depth,optional" default:"8" min:"1" max:"20" doc:"Archives in archives."`
	MaxFiles    int      `hcl:"max_files,optional" default:"2000" min:"1" max:"100000" doc:"Files in all archives of a message together."`
	MaxExpanded sdk.Size `hcl:"max_expanded,optional" default:"100MiB" min:"1MiB" max:"4GiB" doc:"What is unpacked of a message at most."`
	MaxRatio    int      `hcl:"max_ratio,optional" default:"200" min:"10" max:"100000" doc:"How many times its own size an attachment may have unpacked, from 16 MiB on."`
	MaxParts    int      `hcl:"max_parts,optional" default:"1000" min:"10" max:"10000" doc:"MIME parts of a message."`
}

// Entry is a set of files with its own action.
type Entry struct {
	Names    []string `hcl:"names,optional" doc:"As above."`
	Types    []string `hcl:"types,optional" doc:"As above."`
	Action   string   `hcl:"action" one_of:"allow reject strip silent_delete quarantine" doc:"What happens; allow lets a file of the default list pass."`
	Response string   `hcl:"response,optional" doc:"Text of a refusal, instead of the one above."`
}

// Bounds of texts.
const (
	maxResponse = 240
	maxNotice   = 2000
)

// New checks cfg. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Filter, error) {
	f := &Filter{Config: cfg, turns: make(chan struct{}, atOnce)}
	for i, e := range cfg.Entries {
		if len(e.Names)+len(e.Types) == 0 {
			return nil, r.At("entry", i).Errorf("it has neither names nor types, so it is about no file")
		}
		rule, err := newRule(r, e, "entry", i)
		if err != nil {
			return nil, err
		}
		if rule.response == "" {
			rule.response = cfg.Response
		}
		f.rules = append(f.rules, rule)
	}
	general := Entry{Names: cfg.Names, Types: cfg.Types, Action: cfg.Action, Response: cfg.Response}
	if _, err := newRule(r, general); err != nil { // at its place, before the default list joins
		return nil, err
	}
	if cfg.DefaultList {
		general.Names = append(defaultNames(), general.Names...)
		general.Types = append(defaultTypes(), general.Types...)
	}
	rule, err := newRule(r, general)
	if err != nil {
		return nil, err
	}
	f.rules = append(f.rules, rule)
	if len(cfg.Notice) > maxNotice {
		return nil, r.At("notice").Errorf("text of %d octets, at most %d", len(cfg.Notice), maxNotice)
	}
	r.OnEndOfData(sdk.Body(sdk.Whole, sdk.Current), sdk.MayChange(sdk.Verdicts, sdk.BodyParts, sdk.Headers, sdk.Stamps(stampEncrypted)))
	return f, nil
}

// rule is an Entry ready for use.
type rule struct {
	names    *match.Names
	types    map[string]bool
	action   string
	response string
}

// newRule checks an entry that stands at path.
func newRule(r *sdk.Registrar, e Entry, path ...any) (*rule, error) {
	at := func(name string, i int) sdk.Place { return r.At(append(path, name, i)...) }
	if i, err := match.Check(e.Names); err != nil {
		return nil, at("names", i).Error(err)
	}
	names, err := match.NewNames(e.Names)
	if err != nil {
		return nil, r.At(path...).Error(err)
	}
	types := map[string]bool{}
	for i, t := range e.Types {
		if t == "" || strings.ContainsAny(t, " ;\"") || strings.Count(t, "/") > 1 {
			return nil, at("types", i).Errorf("%q is no media type such as \"application/pdf\" or \"image/*\"", t)
		}
		types[strings.ToLower(t)] = true
	}
	if err := checkResponse(e.Response); err != "" {
		return nil, r.At(append(path, "response")...).Errorf("%s", err)
	}
	return &rule{names: names, types: types, action: e.Action, response: e.Response}, nil
}

// checkResponse: one line of printable ASCII (RFC 5321 section 4.2).
func checkResponse(text string) (problem string) {
	if len(text) > maxResponse {
		return "a text of more than 240 characters"
	}
	for _, r := range text {
		if r < ' ' || r > '~' {
			return "a reply is one line of ASCII"
		}
	}
	return ""
}

// defaultTypes are those of Exchange's Edge Transport.
func defaultTypes() []string {
	return strings.Fields(`application/hta application/javascript application/msaccess application/prg application/x-javascript
		application/x-msdownload application/x-internet-signup message/partial text/javascript text/scriptlet x-internet-signup`)
}

// defaultNames are those of Exchange's Edge Transport.
func defaultNames() []string {
	names := strings.Fields(`ade adp app asx bas bat chm cmd com cpl crt csh exe fxp hlp hta inf ins isp js jse ksh lnk mda mdb mde
		mdt mdw mdz msc msi msp mst ops pcd pif prf prg ps1 ps1xml ps11 ps11xml ps2 ps2xml psc1 psc2 reg scf scr sct shb shs url vb
		vbe vbs wsc wsf wsh xnk`)
	for i := range names {
		names[i] = "*." + names[i]
	}
	return names
}
