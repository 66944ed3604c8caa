package main

import (
	"net/netip"
	"regexp"
	"time"

	"github.com/posternmail/postern/sdk"
)

// Config of the agent. Without an `on` block it continues at every event of `events`.
type Config struct {
	Events     []string `hcl:"events,optional" doc:"events to subscribe beside those of the on blocks, with no answer but continue; \"all\" is every event"`
	Rules      []Rule   `hcl:"on,block" doc:"what to do at an event; the first block that matches decides"`
	Record     string   `hcl:"record,optional" doc:"file that gets a line for each event: kind, event id, attempt, pid, arguments as JSON; in the state folder unless the path begins with a slash"`
	NeverReady bool     `hcl:"never_ready,optional" doc:"never answers Configure"`
	Invalid    string   `hcl:"invalid,optional" doc:"refuses the configuration with this text"`
	Secret     string   `hcl:"secret,optional" sensitive:"true" doc:"is never shown"`
	Every      string   `hcl:"every,optional" default:"1h" doc:"interval of OnSchedule"`
}

// Rule is an `on` block.
type Rule struct {
	Event string `hcl:"event,label"`

	// Conditions; those that are set must all hold.
	Sender    *regexp.Regexp `hcl:"sender,optional" doc:"envelope sender"`
	Recipient *regexp.Regexp `hcl:"recipient,optional" doc:"the recipient of OnRcpt, any recipient later"`
	Subject   *regexp.Regexp `hcl:"subject,optional" doc:"decoded subject"`
	Client    []netip.Prefix `hcl:"client,optional" doc:"source address"`
	Attempt   int            `hcl:"attempt,optional" doc:"only at this attempt, from 1"`
	Times     int            `hcl:"times,optional" doc:"misbehaves, or else matches, only so many times over all processes and restarts; remembered in the state folder"`
	Per       string         `hcl:"per,optional" default:"rule" one_of:"rule event message session" doc:"what times counts"`
	Stamped   string         `hcl:"stamped,optional" doc:"only if this stamp (of read_stamps) is there"`

	// What the event needs.
	Headers    []string  `hcl:"headers,optional" doc:"header fields to ask for; \"*\" is all"`
	Body       bool      `hcl:"body,optional" doc:"ask for the whole body and read it"`
	Prefix     sdk.Size  `hcl:"prefix,optional" doc:"ask for the start of the body and read it"`
	SkipOver   sdk.Size  `hcl:"skip_over,optional" doc:"no larger bodies"`
	Original   bool      `hcl:"original,optional" doc:"view of the octets received"`
	ReadStamps []string  `hcl:"read_stamps,optional" doc:"stamps to ask for"`
	Waits      bool      `hcl:"waits,optional" doc:"declares that it waits"`
	Declare    *[]string `hcl:"declare,optional" doc:"what answers may hold (verdict, headers, body, envelope, copies, spawn, bypass, route, stamp:NAME); default: all"`

	// The answer.
	Action     string        `hcl:"action,optional" default:"continue" one_of:"continue done reject defer disconnect discard quarantine tarpit bypass fail wait undetermined fault nothing" doc:"the verdict"`
	Code       int           `hcl:"code,optional" doc:"of the reply"`
	Enhanced   string        `hcl:"enhanced,optional" doc:"of the reply"`
	Text       string        `hcl:"text,optional" default:"mock" doc:"of the reply"`
	Reason     string        `hcl:"reason,optional" doc:"for the ledger"`
	Data       string        `hcl:"data,optional" doc:"for the ledger"`
	Delay      time.Duration `hcl:"delay,optional" doc:"of tarpit and wait"`
	Scope      string        `hcl:"scope,optional" default:"message" one_of:"session message recipient" doc:"of done, bypass and stamps"`
	Category   string        `hcl:"category,optional" default:"antispam" one_of:"other antispam antivirus authentication rewrite policy journaling" doc:"of bypass"`
	Recipients []string      `hcl:"recipients,optional" doc:"addresses the verdict and the edits are for"`
	AllBut     []string      `hcl:"all_but,optional" doc:"addresses the verdict and the edits are not for"`

	AddHeader       map[string]string `hcl:"add_header,optional" doc:"name to text, in front"`
	AppendHeader    map[string]string `hcl:"append_header,optional" doc:"name to text, behind"`
	ReplaceHeader   map[string]string `hcl:"replace_header,optional" doc:"name to text; all fields of that name in headers"`
	RemoveHeader    []string          `hcl:"remove_header,optional" doc:"names"`
	ReplaceBody     *string           `hcl:"replace_body,optional" doc:"new body"`
	AppendBody      string            `hcl:"append_body,optional" doc:"text behind the body"`
	RewriteTo       string            `hcl:"rewrite_recipient,optional" doc:"new address of each recipient that matches recipient"`
	RewriteFrom     *string           `hcl:"rewrite_sender,optional" doc:"new sender"`
	AddRecipient    []string          `hcl:"add_recipient,optional" doc:"addresses"`
	RemoveRecipient []string          `hcl:"remove_recipient,optional" doc:"addresses"`
	Expand          []string          `hcl:"expand,optional" doc:"members that take the place of each recipient that matches recipient"`
	Route           string            `hcl:"route,optional" doc:"domain to route by"`
	Fork            bool              `hcl:"fork,optional" doc:"a copy for the recipients of recipients"`
	Stamp           map[string]string `hcl:"stamp,optional" doc:"name to value, in scope"`
	KeepCopy        string            `hcl:"keep_copy,optional" doc:"reason"`
	Count           map[string]int    `hcl:"count,optional" doc:"counters"`
	Writes          []Write           `hcl:"write,block"`
	Spawns          []Spawn           `hcl:"spawn,block"`
	Need            *Need             `hcl:"need,block"`

	// Before the answer.
	Sleep     time.Duration `hcl:"sleep,optional" doc:"first"`
	Progress  time.Duration `hcl:"progress,optional" doc:"asks for more time before it sleeps"`
	Barrier   *Barrier      `hcl:"barrier,block" doc:"then waits for others"`
	Misbehave string        `hcl:"misbehave,optional" one_of:"kill exit hang panic crash nonsense unknown_verdict unknown_edit no_verdict bad_header bad_digest bad_code forbidden_edit twice late never flood_stdout flood_stderr leak" doc:"then, after reading what it asked for, does harm"`
}

// Write to a table.
type Write struct {
	Table  string        `hcl:"table,label"`
	Key    string        `hcl:"key" doc:"\"{sender}\", \"{recipient}\", \"{client}\" and \"{event}\" are filled in"`
	Op     string        `hcl:"op,optional" default:"put" one_of:"put put_if_absent add delete"`
	Field  string        `hcl:"field,optional" default:"n" doc:"number in the row; put writes amount there"`
	Amount int64         `hcl:"amount,optional" default:"1"`
	TTL    time.Duration `hcl:"ttl,optional" default:"1h"`
}

// Spawn of a message.
type Spawn struct {
	Sender     string   `hcl:"sender,optional"`
	Recipients []string `hcl:"recipients"`
	Text       string   `hcl:"text,optional" default:"Subject: mock\r\n\r\nspawned\r\n" doc:"header block, empty line and body"`
	Original   bool     `hcl:"include_original,optional" doc:"the original behind the text"`
	Durable    bool     `hcl:"durable,optional"`
}

// Need of rows; the second sight of the event continues.
type Need struct {
	Table string   `hcl:"table"`
	Keys  []string `hcl:"keys"`
}

// Barrier waits until Count handlers have come to it for the same event.
type Barrier struct {
	File  string `hcl:"file" doc:"shared by all who wait for each other"`
	Count int    `hcl:"count"`
}
