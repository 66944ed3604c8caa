package config

func (l *loader) configureAgents(agents []*agentNode) {}
