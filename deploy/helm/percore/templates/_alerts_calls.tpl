{{/* Alerts on stored calls. Without stored calls there are no such series, and no alert fires. */}}
{{- define "percore.storedCallAlerts" -}}
{{- $series := include "percore.gatewaySeries" . }}
{{- $rules := .Values.monitoring.rules }}
# Only if no gateway can use the store. During an update the new gateway waits for the volume, while the old one serves its running calls.
- alert: PercoreStoredCallsDown
  expr: max by (namespace) (percore_stored_calls_up{ {{- $series }}}) == 0
  for: 2m
  labels:
    severity: critical
  annotations:
    summary: Calls cannot be stored.
    description: 'No gateway of the release can use the store of calls. Calls with "Prefer: respond-async", and requests about stored calls, are answered 503.'
# Gateways that share a database export the same value, so this is a maximum and not a sum.
- alert: PercoreStoredCallsWait
  expr: max by (namespace) (percore_stored_call_oldest_age_seconds{ {{- $series }},state="queued"}) > {{ int64 $rules.storedCallQueueSeconds }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: A stored call has been queued for long.
    description: {{`'The oldest queued stored call was received {{ $value | humanizeDuration }} ago.'`}}
- alert: PercoreStoredCallsNearlyFull
  expr: |-
    max by (namespace) (percore_stored_bytes{ {{- $series }}})
    / max by (namespace) (percore_stored_bytes_limit{ {{- $series }}}) > 0.9
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: There is hardly any room for stored calls.
    description: {{`'The store of calls is {{ $value | humanizePercentage }} full. When it is full, new calls with "Prefer: respond-async" are answered 503.'`}}
- alert: PercoreStoredRunsLost
  expr: |-
    round(sum by (namespace) (increase(percore_stored_call_runs_total{ {{- $series }},end=~"pod-lost|gateway-lost"}[1h]))) >= {{ int $rules.minimumCalls }}
  labels:
    severity: warning
  annotations:
    summary: Runs of stored calls are lost.
    description: {{`'Runs of stored calls that were lost with their pod or their gateway within an hour: {{ $value }}. Each such call runs again, or has failed.'`}}
- alert: PercoreWebhooksGivenUp
  expr: round(sum by (namespace) (increase(percore_webhook_attempts_total{ {{- $series }},outcome="given-up"}[1h]))) > 0
  labels:
    severity: warning
  annotations:
    summary: Webhooks were not delivered.
    description: {{`'Webhooks that gateways gave up within the last hour: {{ $value }}.'`}}
{{- end }}
