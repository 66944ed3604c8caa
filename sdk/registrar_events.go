package sdk

// What an event needs and may change is said with the method of the Registrar that has the handler's name.
// Without a call the event is subscribed with its plain facts, all verdicts, and the tables in use.

// OnConnect says what the handler of that name needs and may change.
func (r *Registrar) OnConnect(options ...Option) { r.on(OnConnect, options) }

// OnHelo says what the handler of that name needs and may change.
func (r *Registrar) OnHelo(options ...Option) { r.on(OnHelo, options) }

// OnEhlo says what the handler of that name needs and may change.
func (r *Registrar) OnEhlo(options ...Option) { r.on(OnEhlo, options) }

// OnStartTls says what the handler of that name needs and may change.
func (r *Registrar) OnStartTls(options ...Option) { r.on(OnStartTls, options) }

// OnAuth says what the handler of that name needs and may change.
func (r *Registrar) OnAuth(options ...Option) { r.on(OnAuth, options) }

// OnEndOfAuthentication says what the handler of that name needs and may change.
func (r *Registrar) OnEndOfAuthentication(options ...Option) { r.on(OnEndOfAuthentication, options) }

// OnMail says what the handler of that name needs and may change.
func (r *Registrar) OnMail(options ...Option) { r.on(OnMail, options) }

// OnRcpt says what the handler of that name needs and may change.
func (r *Registrar) OnRcpt(options ...Option) { r.on(OnRcpt, options) }

// OnData says what the handler of that name needs and may change.
func (r *Registrar) OnData(options ...Option) { r.on(OnData, options) }

// OnEndOfHeaders says what the handler of that name needs and may change.
func (r *Registrar) OnEndOfHeaders(options ...Option) { r.on(OnEndOfHeaders, options) }

// OnEndOfData says what the handler of that name needs and may change.
func (r *Registrar) OnEndOfData(options ...Option) { r.on(OnEndOfData, options) }

// OnNoop says what the handler of that name needs and may change.
func (r *Registrar) OnNoop(options ...Option) { r.on(OnNoop, options) }

// OnHelp says what the handler of that name needs and may change.
func (r *Registrar) OnHelp(options ...Option) { r.on(OnHelp, options) }

// OnRset says what the handler of that name needs and may change.
func (r *Registrar) OnRset(options ...Option) { r.on(OnRset, options) }

// OnReject says what the handler of that name needs and may change.
func (r *Registrar) OnReject(options ...Option) { r.on(OnReject, options) }

// OnDisconnect says what the handler of that name needs and may change.
func (r *Registrar) OnDisconnect(options ...Option) { r.on(OnDisconnect, options) }

// OnSubmitted says what the handler of that name needs and may change.
func (r *Registrar) OnSubmitted(options ...Option) { r.on(OnSubmitted, options) }

// OnResolved says what the handler of that name needs and may change.
func (r *Registrar) OnResolved(options ...Option) { r.on(OnResolved, options) }

// OnRouted says what the handler of that name needs and may change.
func (r *Registrar) OnRouted(options ...Option) { r.on(OnRouted, options) }

// OnCategorized says what the handler of that name needs and may change.
func (r *Registrar) OnCategorized(options ...Option) { r.on(OnCategorized, options) }

// OnDelivered says what the handler of that name needs and may change.
func (r *Registrar) OnDelivered(options ...Option) { r.on(OnDelivered, options) }

// OnDeferred says what the handler of that name needs and may change.
func (r *Registrar) OnDeferred(options ...Option) { r.on(OnDeferred, options) }

// OnFailed says what the handler of that name needs and may change.
func (r *Registrar) OnFailed(options ...Option) { r.on(OnFailed, options) }

// OnReported says what the handler of that name needs and may change.
func (r *Registrar) OnReported(options ...Option) { r.on(OnReported, options) }

// OnSchedule says what the handler of that name needs and may change.
func (r *Registrar) OnSchedule(options ...Option) { r.on(OnSchedule, options) }

// OnReleased says what the handler of that name needs and may change.
func (r *Registrar) OnReleased(options ...Option) { r.on(OnReleased, options) }

// OnFeedback says what the handler of that name needs and may change.
func (r *Registrar) OnFeedback(options ...Option) { r.on(OnFeedback, options) }
