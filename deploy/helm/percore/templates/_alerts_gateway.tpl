{{/* The gateways, and what the other alerts rest on: that there are numbers, and that they are whole. */}}
{{- define "percore.gatewayAlerts" -}}
{{- $series := include "percore.gatewaySeries" . }}
{{- $gateways := printf "namespace=%q,deployment=\"%s-gateway\"" .Release.Namespace (include "percore.fullname" .) }}
{{- $none := printf "max by (namespace) (kube_deployment_status_replicas_ready{%s}) == 0" $gateways }}
{{- $down := printf "sum by (namespace) (percore_gateway_haproxy_up{%s}) == 0" $series }}
{{- $rules := .Values.monitoring.rules }}
- alert: PercoreNoGatewayReady
  expr: |-
    {{ $none }}
    or {{ $down }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: No gateway takes calls.
    description: No gateway of the release is ready; every caller is refused.
# Where there is no gateway either, the alert above says so. A new target takes the operator and Prometheus up to three minutes.
- alert: PercoreMetricMissing
  expr: |-
    max by (namespace) (absent(percore_in_flight_requests{ {{- $series }}}))
    unless on (namespace) ({{ $none }})
    unless on (namespace) ({{ $down }})
  for: 5m
  labels:
    severity: critical
  annotations:
    summary: Prometheus has no numbers of the gateways.
    description: percore_in_flight_requests has been missing for five minutes. Autoscaling stands still, and no other alert on calls can fire.
- alert: PercoreHAProxyDown
  expr: max by (namespace, pod) (percore_gateway_haproxy_up{ {{- $series }}}) == 0
  for: 1m
  labels:
    severity: warning
  annotations:
    summary: HAProxy does not answer its controller.
    description: {{`'HAProxy in pod {{ $labels.pod }} has not answered its controller for a minute.'`}}
# The API server confirms the endpoints once a minute, also where nothing has changed.
- alert: PercoreEndpointsStale
  expr: max by (namespace, pod) (percore_gateway_endpoints_age_seconds{ {{- $series }}}) > 180
  for: 2m
  labels:
    severity: warning
  annotations:
    summary: A gateway does not hear of new pods.
    description: {{`'The API server last confirmed the endpoints to pod {{ $labels.pod }} {{ $value | humanizeDuration }} ago; pods that start meanwhile get no calls.'`}}
- alert: PercorePodsUnplaced
  expr: max by (namespace) (percore_gateway_unplaced_pods{ {{- $series }}}) > 0
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: Ready pods get no calls, for want of slots in the gateway.
    description: {{`'Ready pods that have no slot in a gateway: {{ $value }}.'`}}
- alert: PercoreCallsAbandoned
  expr: |-
    sum by (namespace) (increase(percore_gateway_abandoned_calls_total{ {{- $series }}}[1h]))
    / sum by (namespace) (increase(percore_gateway_call_duration_seconds_count{ {{- $series }}}[1h])) > {{ $rules.abandonedPercent }} / 100
    and round(sum by (namespace) (increase(percore_gateway_abandoned_calls_total{ {{- $series }}}[1h]))) >= {{ int $rules.minimumCalls }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: Callers give up before they are answered.
    description: {{`'{{ $value | humanizePercentage }} of the calls of the last hour were given up by their callers.'`}}
- alert: PercoreLogLinesLost
  expr: round(sum by (namespace, pod) (increase(percore_gateway_log_lines_lost_total{ {{- $series }}}[1h]))) > 0
  labels:
    severity: warning
  annotations:
    summary: The numbers of calls are too low.
    description: {{`'Lines of HAProxy''s log that did not reach the controller of pod {{ $labels.pod }} within an hour: {{ $value }}. Their calls are in no histogram.'`}}
{{- end }}
