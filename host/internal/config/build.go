package config

import (
	"os"
	"strings"
)

// build makes the Config from the decoded blocks and judges what one block alone cannot show.
func (l *loader) build() {
	l.buildHost()
	l.buildServices()
	l.buildTLS()
	l.buildDomains()
	l.buildReceiveConnectors()
	l.buildSendConnectors()
	l.buildAgents()
	l.checkTogether()
}

func (l *loader) buildHost() {
	n := l.root.one("host")
	n.derive("name", l.system, "the system")
	budget := n.one("event_budget")
	l.config.Host = Host{
		Name:                strings.ToLower(n.str("name")),
		DataDir:             n.str("data_dir"),
		User:                n.str("user"),
		InternalSMTPServers: n.prefixes("internal_smtp_servers"),
		EventBudget: EventBudget{
			Connect: budget.duration("connect"),
			Command: budget.duration("command"),
			Message: budget.duration("message"),
			Routing: budget.duration("routing"),
		},
		MaxHops:         int(n.number("max_hops")),
		OnPartialReject: n.str("on_partial_reject"),
		ShutdownGrace:   n.duration("shutdown_grace"),
		RestartGrace:    n.duration("restart_grace"),
		SkippedHeader:   n.flag("skipped_header"),
	}
	l.checkHost(n)
}

// systemName is what the system calls itself, as far as it is a name to greet with.
func systemName() string {
	name, err := os.Hostname()
	if err != nil || checkDomain(name) != nil {
		return "localhost"
	}
	return name
}

// buildServices fills in the small blocks that stand there once.
func (l *loader) buildServices() {
	c, root := l.config, l.root
	c.LogLevel, c.LogJSON = root.one("log").str("level"), root.one("log").flag("json")
	c.Metrics = Metrics{Listen: root.one("metrics").str("listen")}
	ledger := root.one("ledger")
	c.Ledger = Ledger{Full: ledger.flag("full"), MaxBytes: ledger.number("max_size"), MaxAge: ledger.duration("max_age")}
	c.Quarantine = Quarantine{ExpireAfter: root.one("quarantine").duration("expire_after")}
	dns := root.one("dns")
	c.DNS = DNS{Resolvers: dns.strs("resolvers"), Timeout: dns.duration("timeout")}
	c.Users = Users{File: root.one("users").str("file")}
	l.buildQueue()
	l.checkServices()
}

func (l *loader) buildQueue() {
	n := l.root.one("queue")
	l.config.Queue = Queue{
		ExpireAfter:      n.duration("expire_after"),
		DelayNotice:      n.duration("delay_notice"),
		GlitchRetries:    int(n.number("glitch_retries")),
		GlitchInterval:   n.duration("glitch_interval"),
		TransientRetries: int(n.number("transient_retries")),
		TransientRetry:   n.duration("transient_retry"),
		RetryInterval:    n.duration("retry_interval"),
		MaxConnections:   int(n.number("max_connections")),
		MaxPerHop:        int(n.number("max_per_hop")),
	}
}

func (l *loader) buildTLS() {
	for _, n := range l.root.all("tls") {
		l.config.TLS[n.label()] = TLS{
			Name: n.label(), Certificate: n.str("certificate"), Key: n.str("key"),
			MinVersion: n.str("min_version"), Range: n.at,
		}
		l.checkTLS(n)
	}
}

func (l *loader) buildDomains() {
	for _, n := range l.root.all("accepted_domain") {
		l.checkDomainLabel(n)
		l.config.AcceptedDomains = append(l.config.AcceptedDomains,
			AcceptedDomain{Name: strings.ToLower(n.label()), Type: n.str("type"), Range: n.at})
	}
	for _, n := range l.root.all("remote_domain") {
		if n.label() != "*" {
			l.checkDomainLabel(n)
		}
		l.config.RemoteDomains = append(l.config.RemoteDomains, RemoteDomain{
			Name: strings.ToLower(n.label()), NondeliveryReports: n.flag("nondelivery_reports"),
			DeliveryReports: n.flag("delivery_reports"), Range: n.at,
		})
	}
	for _, n := range l.root.all("directory") {
		l.checkDirectory(n)
		l.config.Directories = append(l.config.Directories,
			Directory{Name: n.label(), File: n.str("file"), Hashed: n.flag("hashed"), Range: n.at})
	}
	l.derivePostmaster()
}

// derivePostmaster names the sender of notifications: postmaster of the first domain that is a name.
func (l *loader) derivePostmaster() {
	host := l.root.one("host")
	domain := l.config.Host.Name
	for _, accepted := range l.config.AcceptedDomains {
		if !strings.HasPrefix(accepted.Name, "*") {
			domain = accepted.Name
			break
		}
	}
	host.derive("postmaster", "postmaster@"+domain, "default")
	l.config.Host.Postmaster = host.str("postmaster")
}

func (l *loader) buildReceiveConnectors() {
	for _, n := range l.root.all("receive_connector") {
		n.derive("banner", l.config.Host.Name+" ESMTP Postern", "default")
		l.config.ReceiveConnectors = append(l.config.ReceiveConnectors, ReceiveConnector{
			Name:        n.label(),
			Listen:      n.strs("listen"),
			Remote:      n.prefixes("remote"),
			Permissions: n.strs("permissions"),
			TLS:         n.str("tls"),
			ImplicitTLS: n.flag("implicit_tls"),
			RequireTLS:  n.flag("require_tls"),
			ProxyFrom:   n.prefixes("proxy_from"),
			Banner:      n.str("banner"),
			ProtocolLog: n.flag("protocol_log"),
			Limits:      buildLimits(n.one("limits")),
			RequireHelo: n.flag("require_helo"),
			Range:       n.at,
		})
		l.checkReceiveConnector(n)
	}
}

func buildLimits(n *node) Limits {
	return Limits{
		MaxMessageSize:       n.number("max_message_size"),
		MaxHeaderSize:        n.number("max_header_size"),
		MaxRecipients:        int(n.number("max_recipients")),
		MaxConnections:       int(n.number("max_connections")),
		MaxPerSource:         int(n.number("max_per_source")),
		MessageRatePerSource: int(n.number("message_rate_per_source")),
		Timeout:              n.duration("timeout"),
		InactivityTimeout:    n.duration("inactivity_timeout"),
		Tarpit:               n.duration("tarpit"),
		MaxProtocolErrors:    int(n.number("max_protocol_errors")),
		MaxLogonFailures:     int(n.number("max_logon_failures")),
		PerSourceSet:         n.set("max_per_source") || n.set("message_rate_per_source"),
		TarpitSet:            n.set("tarpit"),
		BannerDelay:          n.duration("banner_delay"),
		BannerDelaySet:       n.set("banner_delay"),
	}
}

func (l *loader) buildSendConnectors() {
	for _, n := range l.root.all("send_connector") {
		n.derive("fqdn", l.config.Host.Name, "default")
		connector := SendConnector{
			Name:           n.label(),
			SmartHosts:     n.strs("smart_hosts"),
			DNS:            n.flag("dns"),
			LMTP:           n.str("lmtp"),
			DropDirectory:  n.str("drop_directory"),
			Port:           int(n.number("port")),
			ForceHELO:      n.flag("force_helo"),
			RequireTLS:     n.flag("require_tls"),
			IgnoreSTARTTLS: n.flag("ignore_starttls"),
			TLSAuth:        n.str("tls_auth"),
			TLSDomain:      n.str("tls_domain"),
			TLSCAFile:      n.str("tls_ca_file"),
			Username:       n.str("username"),
			Password:       n.str("password"),
			MaxMessageSize: n.number("max_message_size"),
			Inactivity:     n.duration("inactivity_timeout"),
			MaxPerConn:     int(n.number("max_messages_per_connection")),
			SourceIP:       parsedAddr(n.str("source_ip")),
			Fqdn:           n.str("fqdn"),
			Range:          n.at,
		}
		for _, s := range n.strs("address_spaces") {
			if space, err := parseAddressSpace(s); err == nil {
				connector.AddressSpaces = append(connector.AddressSpaces, space)
			}
		}
		l.config.SendConnectors = append(l.config.SendConnectors, connector)
		l.checkSendConnector(n)
	}
}

// checkDomainLabel judges a label that is a domain.
func (l *loader) checkDomainLabel(n *node) {
	if err := checkDomain(n.label()); err != nil {
		l.diags.errorf(n.labelAt(), "%q is not a domain name: %v", n.label(), err)
	}
}
