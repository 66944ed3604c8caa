package config

// The tables of the host's own blocks: what may stand there, its type, default, bounds and meaning. Decoding,
// `config show` and docs/configuration.md are made from them.

// topLevel is the configuration as a whole.
func topLevel() *blockType {
	return &blockType{blocks: []*blockType{
		hostBlock(), logBlock(), metricsBlock(), ledgerBlock(), quarantineBlock(), queueBlock(), dnsBlock(), tlsBlock(),
		usersBlock(), receiveConnectorBlock(), acceptedDomainBlock(), remoteDomainBlock(), directoryBlock(),
		sendConnectorBlock(), agentDefaultsBlock(), agentBlock(),
	}}
}

func duration(name, byDefault, min, max, doc string) option {
	return option{name: name, typ: stringType, format: formatDuration, byDefault: quote(byDefault), min: min, max: max, doc: doc}
}

func size(name, byDefault, min, max, doc string) option {
	return option{name: name, typ: stringType, format: formatSize, byDefault: quote(byDefault), min: min, max: max, doc: doc}
}

func integer(name, byDefault, min, max, doc string) option {
	return option{name: name, typ: numberType, format: formatInteger, byDefault: byDefault, min: min, max: max, doc: doc}
}

func truth(name, byDefault, doc string) option {
	return option{name: name, typ: boolType, byDefault: byDefault, doc: doc}
}

func choice(name, byDefault, doc string, oneOf ...string) option {
	return option{name: name, typ: stringType, byDefault: quote(byDefault), oneOf: oneOf, doc: doc}
}

func text(name string, f format, doc string) option {
	return option{name: name, typ: stringType, format: f, filled: true, doc: doc}
}

func list(name string, f format, doc string) option {
	return option{name: name, typ: stringsType, format: f, byDefault: "[]", doc: doc}
}

func quote(s string) string {
	if s == "" {
		return ""
	}
	return `"` + s + `"`
}

func (o option) mandatory() option {
	o.required, o.byDefault, o.filled = true, "", true
	return o
}

func (o option) otherwise(words string) option {
	o.byDefault, o.defaultIs = "", words
	return o
}

func (o option) starting(byDefault string) option {
	o.byDefault = byDefault
	return o
}

func (o option) secret() option {
	o.sensitive = true
	return o
}

func hostBlock() *blockType {
	return &blockType{
		name: "host", max: 1,
		doc: "The host itself.",
		options: []option{
			text("name", formatDomain, "The name it greets with, a fully qualified domain name.").otherwise("the system's host name"),
			text("data_dir", formatPath, "Folder of the store, tables, ledger, control socket and the state of agents.").starting(`"/var/lib/postern"`),
			text("user", formatText, "User that the host runs as when it is started as root: a name, a name and a group as `name:group`, or numbers as `uid:gid`. Only a small process that starts agents stays root.").otherwise("the user who starts it"),
			list("internal_smtp_servers", formatPrefix, "Servers whose `Received` lines are believed when the source of a message is looked for."),
			text("postmaster", formatMailbox, "Sender shown in notifications.").otherwise("postmaster at the first accepted domain"),
			integer("max_hops", "30", "1", "1000", "`Received` fields before a message counts as looping."),
			choice("on_partial_reject", "quarantine", "What becomes of recipients that were refused at the end of data while others were accepted, when the client is anonymous and may not get a notification.", "quarantine", "discard"),
			duration("shutdown_grace", "30s", "0s", "1h", "How long sessions and deliveries under way may finish when the host ends."),
			duration("restart_grace", "10m", "0s", "24h", "How long the sessions of a host process go on after `postern restart` has replaced it. Then they are told to come back (421)."),
			truth("skipped_header", "false", "Delivered messages name the agents that failed at them and were skipped (`on_failure`), in a field `X-Postern-Skipped`. No stranger can write it: such fields are taken out of what comes from outside."),
		},
		blocks: []*blockType{{
			name: "event_budget", max: 1,
			doc: "Time that all agents together have at one event. Keep it below what clients wait for (RFC 5321 section 4.5.3.2).",
			options: []option{
				duration("connect", "10s", "100ms", "5m", "When a client has connected."),
				duration("command", "20s", "100ms", "5m", "At each command."),
				duration("message", "60s", "100ms", "10m", "At the end of the headers and at the end of data."),
				duration("routing", "15m", "1s", "24h", "At each event after the message was accepted."),
			},
		}},
	}
}

func logBlock() *blockType {
	return &blockType{
		name: "log", max: 1,
		doc: "The host's log, on standard error.",
		options: []option{
			choice("level", "info", "The least severe level that is written.", "trace", "debug", "info", "warn", "error"),
			truth("json", "false", "JSON lines instead of text."),
		},
	}
}

func metricsBlock() *blockType {
	return &blockType{
		name: "metrics", max: 1,
		doc:     "Counters for Prometheus.",
		options: []option{text("listen", formatListen, "Where `/metrics` is served.").otherwise("off")},
	}
}

func ledgerBlock() *blockType {
	return &blockType{
		name: "ledger", max: 1,
		doc: "The record of every session and message, read by `postern track` and `postern why`.",
		options: []option{
			truth("full", "false", "Record the plain \"continue\" verdicts of agents too."),
			size("max_size", "1 GB", "1 MB", "100 TB", "Of all files together; the oldest are deleted."),
			duration("max_age", "30d", "1h", "3650d", "Older files are deleted."),
		},
	}
}

func quarantineBlock() *blockType {
	return &blockType{
		name: "quarantine", max: 1,
		doc:     "Messages that an agent has put aside.",
		options: []option{duration("expire_after", "30d", "1m", "3650d", "Age at which a message is deleted.")},
	}
}

func queueBlock() *blockType {
	return &blockType{
		name: "queue", max: 1,
		doc: "Retries of what could not be delivered yet: at first a few quick ones, then slower ones, then one every `retry_interval` until the message expires.",
		options: []option{
			duration("expire_after", "2d", "1s", "90d", "Age at which a message is given up and its sender told."),
			duration("delay_notice", "4h", "1s", "90d", "Age at which the sender is told of the delay."),
			integer("glitch_retries", "4", "0", "15", "Quick retries after a broken connection."),
			duration("glitch_interval", "1m", "50ms", "1d", "Between quick retries."),
			integer("transient_retries", "6", "0", "15", "Slower retries that follow."),
			duration("transient_retry", "10m", "50ms", "1d", "Between slower retries."),
			duration("retry_interval", "30m", "50ms", "1d", "Between all later ones."),
			integer("max_connections", "1000", "1", "100000", "Outbound connections at once."),
			integer("max_per_hop", "20", "1", "100000", "Outbound connections at once to one next hop."),
		},
	}
}

func dnsBlock() *blockType {
	return &blockType{
		name: "dns", max: 1,
		doc: "How the host and the agents ask the DNS.",
		options: []option{
			list("resolvers", formatHostPort, "Servers to ask.").otherwise("the system's"),
			duration("timeout", "5s", "100ms", "1m", "For one question."),
		},
	}
}

func tlsBlock() *blockType {
	return &blockType{
		name: "tls", labels: []string{"name"}, unique: true,
		doc: "A certificate, referred to by its name. The files are read again when they change. Without certificate and key a self-signed one is made at the first start and kept in the data directory.",
		options: []option{
			text("certificate", formatPath, "PEM file with the certificate and its chain."),
			text("key", formatPath, "PEM file with the private key."),
			choice("min_version", "1.2", "The oldest version of TLS that is spoken.", "1.2", "1.3"),
		},
	}
}

func usersBlock() *blockType {
	return &blockType{
		name: "users", max: 1,
		doc:     "Who may log in. `postern user hash` makes the lines of the file.",
		options: []option{text("file", formatPath, "A line `name:hash` for each user, bcrypt or argon2id. Read again when it changes.").mandatory()},
	}
}

func receiveConnectorBlock() *blockType {
	return &blockType{
		name: "receive_connector", labels: []string{"name"}, unique: true,
		doc: "A listener: where mail comes in, from whom, and what they may do.",
		options: []option{
			list("listen", formatListen, "Addresses with ports; nothing before the colon is every address.").mandatory(),
			list("remote", formatPrefix, "Clients the connector is for; others are refused. Connectors that name the same address in `listen` share it: a client is for the one with the most specific range that holds the address it connects from, and for the one without `remote` when no range does.").otherwise("all"),
			permissionsOption(),
			text("tls", formatAny, "Name of the `tls` block to offer STARTTLS with.").otherwise("no TLS"),
			truth("implicit_tls", "false", "TLS from the first octet, as on port 465."),
			truth("require_tls", "false", "Nothing but EHLO, NOOP, QUIT and STARTTLS before TLS."),
			list("proxy_from", formatPrefix, "Load balancers that speak the PROXY protocol, version 1 or 2."),
			text("banner", formatText, "Text of the greeting behind `220 `.").otherwise("the host's name and `ESMTP Postern`"),
			truth("protocol_log", "false", "Log every line of the dialog, secrets hidden."),
			truth("require_helo", "true", "MAIL needs HELO or EHLO before it."),
		},
		blocks: []*blockType{limitsBlock()},
	}
}

func permissionsOption() option {
	o := list("permissions", formatAny, "Who the clients are: `anonymous` may send to accepted domains; `users` may log in and then send anywhere; `own_servers`, told by `remote` or `internal_smtp_servers`, may send anywhere without. `partners` is not supported yet.")
	o.oneOf = []string{"anonymous", "users", "partners", "own_servers"}
	o.filled = true
	return o.starting(`["anonymous"]`)
}

func limitsBlock() *blockType {
	return &blockType{
		name: "limits", max: 1,
		doc: "Limits of a receive connector.",
		options: []option{
			size("max_message_size", "36 MB", "1 KB", "10 GB", "Of a message as sent, a third larger than its attachments."),
			size("max_header_size", "256 KB", "1 KB", "1 MB", "Of the header block."),
			integer("max_recipients", "200", "1", "5000", "Recipients of a message; more are deferred, and count as errors when a session gives a thousand of them."),
			integer("max_connections", "5000", "1", "1000000", "Connections at once."),
			integer("max_per_source", "20", "1", "1000000", "Connections at once from one address. Loopback is free unless this is set."),
			integer("message_rate_per_source", "600", "1", "10000000", "Messages a minute from one address. Loopback is free unless this is set."),
			duration("timeout", "5m", "100ms", "1d", "Of a whole session; it stands still while a message body moves."),
			duration("inactivity_timeout", "1m", "100ms", "1d", "Without a sign of the client."),
			duration("tarpit", "5s", "0s", "10m", "Delay of refusals to anonymous clients. None on loopback unless this is set."),
			duration("banner_delay", "100ms", "0s", "30s", "Wait for anonymous clients that talk before the greeting, which agents are told; one that does is not waited for any longer. None on loopback unless this is set."),
			integer("max_protocol_errors", "5", "1", "1000", "Errors before the connection is closed."),
			integer("max_logon_failures", "3", "1", "1000", "Wrong passwords before the connection is closed."),
		},
	}
}

func acceptedDomainBlock() *blockType {
	return &blockType{
		name: "accepted_domain", labels: []string{"domain"}, unique: true,
		doc: "A domain that mail is taken for; `*.x` is every subdomain of x.",
		options: []option{
			choice("type", Authoritative, "`authoritative`: all its recipients are known here; `internal_relay`: some are, all go inside; `external_relay`: all are elsewhere.",
				Authoritative, InternalRelay, ExternalRelay),
		},
	}
}

func remoteDomainBlock() *blockType {
	return &blockType{
		name: "remote_domain", labels: []string{"domain"}, unique: true,
		doc: "What the senders of a domain are told; `*` is every domain without a block of its own.",
		options: []option{
			truth("nondelivery_reports", "true", "Report failures to them."),
			truth("delivery_reports", "true", "Report deliveries that they asked to be told of."),
		},
	}
}

func directoryBlock() *blockType {
	return &blockType{
		name: "directory", labels: []string{"name"}, unique: true,
		doc: "Recipients, groups and safelists, filled into the tables of these names.",
		options: []option{
			text("file", formatPath, "A CSV or JSON file. Read again when it changes.").mandatory(),
			truth("hashed", "false", "The addresses in the file are SHA-256 hashes."),
		},
		blocks: []*blockType{{name: "ldap", later: true, doc: "Reads an LDAP directory."}},
	}
}

func sendConnectorBlock() *blockType {
	return &blockType{
		name: "send_connector", labels: []string{"name"}, unique: true,
		doc: "A way out. Exactly one of `smart_hosts`, `dns`, `lmtp` and `drop_directory` says which.",
		options: []option{
			list("address_spaces", formatAddressSpace, "Recipient domains it serves: `*`, `example.org`, `*.example.org`, with `;cost` from 1 to 100 behind.").mandatory(),
			list("smart_hosts", formatSmartHost, "Servers that take all of it, spread and failed over.").starting(""),
			truth("dns", "false", "Deliver to the mail exchangers of each domain. One that is this host, by its name, an address that it listens on or (with port 25) a loopback address, is a loop, and mail that has no other way fails. Private addresses are used: internal DNS has them."),
			text("lmtp", formatLMTP, "An LMTP server."),
			text("drop_directory", formatPath, "A folder that gets each message as a file."),
			integer("port", "25", "1", "65535", "Port of mail exchangers, and of smart hosts that name none."),
			truth("force_helo", "false", "Greet with HELO, for servers that choke on EHLO."),
			truth("require_tls", "false", "Wait rather than send without TLS."),
			truth("ignore_starttls", "false", "Never use TLS."),
			choice("tls_auth", "none", "What is asked of the server's certificate: nothing and TLS where offered; `encryption`; a valid `certificate`; one for the right `domain`.", "none", "encryption", "certificate", "domain"),
			text("tls_domain", formatDomain, "Name that the certificate must hold with `tls_auth = \"domain\"`.").otherwise("the name of the next hop"),
			text("tls_ca_file", formatPath, "PEM file of the authorities that are trusted.").otherwise("the system's"),
			text("username", formatText, "Log in to smart hosts with this name."),
			text("password", formatAny, "Its password.").secret(),
			size("max_message_size", "", "1 KB", "10 GB", "Larger messages are not sent by this connector.").otherwise("no limit"),
			duration("inactivity_timeout", "10m", "100ms", "1d", "Without a sign of the server."),
			integer("max_messages_per_connection", "20", "1", "100000", "Messages before a connection is closed."),
			text("source_ip", formatAddress, "Local address to send from.").otherwise("the system's choice"),
			text("fqdn", formatDomain, "Name in EHLO.").otherwise("the host's name"),
		},
	}
}

// Groups of events, as timeout and on_failure name them.
const (
	groupConnect   = "connect"
	groupCommand   = "command"
	groupMessage   = "message"
	groupSubmitted = "submitted"
)

func agentDefaultsBlock() *blockType {
	return &blockType{
		name: "agent_defaults", max: 1,
		doc:     "Values for every agent that does not say otherwise.",
		options: []option{timeoutOption(), onFailureOption()},
		blocks:  []*blockType{timeoutBlock(), onFailureBlock(), whenBlock(), sandboxBlock()},
	}
}

func timeoutOption() option {
	return duration("timeout", "", "10ms", "1d", "Time for the answer to one event, all attempts together; never more than the event's budget. A block gives it per group of events.").otherwise("5s")
}

func onFailureOption() option {
	return option{
		name: "on_failure", typ: stringType, oneOf: []string{"defer", "skip", "reject", "hold"},
		defaultIs: "`skip` for agents that declare no verdict, otherwise `defer`",
		doc:       "What an event without an answer becomes: a temporary refusal, nothing, a permanent refusal, or (`hold`, at the end of data only, so only in the block) acceptance with a scan when the agent is back. A block gives it per group of events.",
	}
}

func timeoutBlock() *blockType {
	return &blockType{
		name: "timeout", max: 1,
		doc: "Time for the answer to one event, by group of events.",
		options: []option{
			duration(groupConnect, "", "10ms", "5m", "When a client has connected.").otherwise("5s"),
			duration(groupCommand, "", "10ms", "5m", "At each command.").otherwise("5s"),
			duration(groupMessage, "", "10ms", "10m", "At the end of the headers and at the end of data.").otherwise("5s"),
			duration(groupSubmitted, "", "10ms", "24h", "After the message was accepted.").otherwise("5s"),
			duration("max", "", "10ms", "24h", "How far an agent that reports progress may extend its time.").otherwise("no further"),
		},
	}
}

func onFailureBlock() *blockType {
	options := []option{}
	for _, group := range []string{"default", groupConnect, groupCommand, groupMessage, groupSubmitted} {
		o := onFailureOption()
		o.name, o.doc = group, map[string]string{
			"default":      "For every group not named here.",
			groupConnect:   "When a client has connected.",
			groupCommand:   "At each command.",
			groupMessage:   "At the end of the headers and at the end of data; `hold` is possible here.",
			groupSubmitted: "After the message was accepted: `defer` waits for the agent.",
		}[group]
		options = append(options, o)
	}
	return &blockType{name: "on_failure", max: 1, doc: "What an event without an answer becomes, by group of events.", options: options}
}

func whenBlock() *blockType {
	traffic := list("traffic", formatAny, "Which mail: `external` from strangers, `outbound` from inside to elsewhere, `internal` from inside to accepted domains.")
	traffic.oneOf, traffic.filled = []string{"external", "outbound", "internal"}, true
	connectors := list("connectors", formatAny, "Names of receive connectors.")
	connectors.filled = true
	return &blockType{
		name: "when", max: 1,
		doc: "Which mail the agent is for. The host judges it, so other mail costs nothing.",
		options: []option{
			connectors.otherwise("all"),
			traffic.otherwise("all"),
			truth("authenticated", "", "Only sessions that have logged in, or only those that have not.").otherwise("both"),
			size("max_size", "", "1", "10 GB", "Only messages up to this size.").otherwise("any"),
		},
	}
}

func restartBlock() *blockType {
	return &blockType{
		name: "restart", max: 1,
		doc: "What becomes of an agent whose processes end again and again. One that ends is started anew at once, then after pauses that double from 250 ms to a minute; one that lived well takes a step back.",
		options: []option{
			integer("attempts", "10", "1", "1000", "Processes that may end early one after the other; then the instance has failed, its events follow `on_failure` at once, and `postern agent show` has its last lines."),
			duration("retry_failed", "5m", "0s", "1d", "How long an instance that has failed waits for each further start. `0s`: only `postern agent restart` or a reload starts it."),
		},
	}
}

func trialBlock(kind, doc string) *blockType {
	return &blockType{
		name: kind, max: 1, asked: true, doc: doc,
		options: []option{
			text("share", formatAny, "Of the sessions, such as `10%`. A session stays with its generation, its messages in the queue too.").mandatory(),
			duration("duration", "", "1s", "90d", "Then the candidate takes over.").otherwise("when `postern agent promote` says so"),
			text("max_disagreements", formatAny, "Of the events compared: different verdicts.").starting(`"5%"`),
			text("max_failures", formatAny, "Of the events compared: the candidate failed, or broke the protocol.").starting(`"1%"`),
			integer("max_latency", "3", "1", "1000", "How many times as long the candidate may take in the mean, once it is 20 ms slower."),
			integer("min_events", "20", "1", "1000000", "Events compared before a limit counts."),
		},
	}
}

// grantNames are what an operator can grant; the pipeline's Grants are the same.
func grantNames() []string {
	return []string{
		"reject", "defer", "disconnect", "discard", "quarantine", "bypass", "bypass_antivirus", "bypass_journaling",
		"headers", "body", "envelope", "stamps", "tables", "keep_copy", "spawn", "route",
	}
}

func agentBlock() *blockType {
	grants := list("grants", formatAny, "What the agent may do at most.")
	grants.oneOf = grantNames()
	command := list("command", formatAny, "Program and arguments. A program with a slash is relative to the file; one without is looked up in PATH.")
	command.filled = true
	return &blockType{
		name: "agent", labels: []string{"name"}, unique: true,
		doc: "An agent: a process that judges or changes mail.",
		options: []option{
			text("plugin", formatAny, "Name of the bundled or installed agent.").otherwise("the label"),
			integer("priority", "", "0", "1000000", "The order of agents, lowest first. No two are equal.").mandatory(),
			truth("enabled", "true", "Whether it runs."),
			command.otherwise("the bundled program"),
			text("attach", formatUnixSocket, "Use an agent that runs already, under a debugger for instance."),
			timeoutOption(), onFailureOption(),
			integer("instances", "1", "1", "64", "Processes of the agent."),
			grants.otherwise("all but bypass of antivirus and journaling"),
			integer("max_in_flight", "256", "1", "100000", "Events at once, all instances together."),
			duration("start_timeout", "10s", "100ms", "10m", "For a process to start and take its configuration."),
			{name: "environment", typ: stringMap(), defaultIs: "nothing of the host's", doc: "Environment of the process."},
			text("version", formatAny, "Run an installed version (`postern agent install`) that satisfies this: `\"1.2.3\"`, `\"~> 1.2\"` (1.2 and later below 2.0), `\"~> 1.2.0\"` (below 1.3), `\">= 1.2, < 2.0\"`. A pre-release only where the constraint names one. Of several the one that runs stays until `postern agent upgrade`.").otherwise("none"),
		},
		blocks: []*blockType{
			timeoutBlock(), onFailureBlock(), whenBlock(),
			trialBlock(Canary, "A new program or config block of the agent is tried before it follows the one that runs: it judges a share of the sessions, and what it decides is compared with what the other one would have. Over a limit it is taken back."),
			trialBlock(Shadow, "A new program or config block of the agent is tried before it follows the one that runs: it is shown copies of the events of a share of the sessions, without effect, and compared. Over a limit it is taken back."),
			{name: "config", max: 1, foreign: true, doc: "The agent's own options: its README has them, and `postern agent run NAME -- --options` prints them."},
			restartBlock(),
			sandboxBlock(),
		},
	}
}
