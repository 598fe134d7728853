{{/* Alerts on the gateways, and on the numbers that the other alerts need. */}}
{{- define "percore.gatewayAlerts" -}}
{{- $series := include "percore.gatewaySeries" . }}
{{- $gateways := printf "namespace=%q,deployment=\"%s-gateway\"" (include "percore.namespace" .) (include "percore.fullname" .) }}
{{- $ready := printf "max by (namespace) (kube_deployment_status_replicas_ready{%s})" $gateways }}
{{- $unscraped := printf "max by (namespace) (up{%s}) == 0 unless on (namespace) %s > 0" $series $ready }}
{{- $rules := .Values.monitoring.rules }}
# kube-state-metrics knows which gateways are ready. Without it, a gateway that does not answer Prometheus counts as not ready.
- alert: PercoreNoGatewayReady
  expr: |-
    {{ $ready }} == 0
    or ({{ $unscraped }})
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: No gateway takes calls.
    description: No gateway of the release is ready. Every caller is refused.
# Silent when the alert above fires. If Prometheus has several clusters, kube-state-metrics says which of them should have the metric.
# Prometheus may need three minutes to find a new target.
- alert: PercoreMetricMissing
  expr: |-
    {{- if .Values.monitoring.clusterLabel }}
    max by (namespace) (kube_deployment_spec_replicas{ {{- $gateways }}})
    unless on (namespace) max by (namespace) (percore_in_flight_requests{ {{- $series }}})
    {{- else }}
    max by (namespace) (absent(percore_in_flight_requests{ {{- $series }}}))
    {{- end }}
    unless on (namespace) ({{ $ready }} == 0)
    unless on (namespace) ({{ $unscraped }})
  for: 5m
  labels:
    severity: critical
  annotations:
    summary: Prometheus has no numbers of the gateways.
    description: percore_in_flight_requests has been missing for five minutes. Autoscaling does not react, and no other alert on calls can fire.
- alert: PercoreGatewayDown
  expr: max by (namespace, pod) (up{ {{- $series }}}) == 0
  for: 1m
  labels:
    severity: warning
  annotations:
    summary: A gateway does not answer.
    description: {{`'Gateway pod {{ $labels.pod }} has not answered Prometheus for a minute.'`}}
# The gauge is the longest delay within a minute, so the alert fires if there is such a delay in each of five minutes, and not after a
# single one. With delays above a second the gateway notices late that a client has disconnected, so it may give a pod to the call of that
# client.
- alert: PercoreGatewayLoopLag
  expr: max by (namespace, pod) (percore_gateway_loop_lag_seconds{ {{- $series }}}) > 1
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: A gateway's event loop is delayed.
    description: {{`'The event loop of gateway pod {{ $labels.pod }} was delayed by {{ $value | humanizeDuration }} within a minute, and this has gone on for five minutes. Every caller of this gateway is delayed.'`}}
# Only the disk: if the memory is full, bodies go to disk, and this is normal.
- alert: PercoreGatewaySpoolFull
  expr: |-
    max by (namespace, pod) (percore_gateway_spool_bytes{ {{- $series }},place="disk"})
    / max by (namespace, pod) (percore_gateway_spool_limit_bytes{ {{- $series }},place="disk"}) > 0.9
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: A gateway has hardly any room for request bodies.
    description: {{`'The spool of gateway pod {{ $labels.pod }} is {{ $value | humanizePercentage }} full. When it is full, calls are answered 503.'`}}
# The window of five minutes is shorter than `for`, so a burst that ends within five minutes does not fire this alert.
- alert: PercoreCallsRejected
  expr: |-
    round(sum by (namespace, reason) (increase(percore_gateway_rejected_calls_total{ {{- $series }},reason=~"queue-full|overloaded"}[5m]))) >= {{ int $rules.minimumCalls }}
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: Gateways reject calls.
    description: {{`'Calls that were rejected within five minutes with the reason {{ $labels.reason }}: {{ $value }}. This has gone on for ten minutes.'`}}
# The API server confirms the endpoints once a minute, even when nothing has changed.
- alert: PercoreEndpointsStale
  expr: max by (namespace, pod) (percore_gateway_endpoints_age_seconds{ {{- $series }}}) > 180
  for: 2m
  labels:
    severity: warning
  annotations:
    summary: A gateway does not learn of new pods.
    description: {{`'The API server last confirmed the endpoints to gateway pod {{ $labels.pod }} {{ $value | humanizeDuration }} ago. This gateway gives no calls to pods that started since.'`}}
# While calls are queued the gateway keeps a connection to every pod, even to one that still loads its models. A pod without a connection
# refuses it or does not answer. A new pod refuses connections until its image is pulled, so the alert waits for ten minutes.
- alert: PercorePodsUnreachable
  expr: |-
    max by (namespace, pod) (percore_gateway_pods{ {{- $series }},state="unknown"}) > 0
    and on (namespace, pod) sum by (namespace, pod) (percore_in_flight_requests{ {{- $series }},state="queued"}) > 0
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: A gateway cannot connect to pods although calls are queued.
    description: {{`'Pods to which gateway pod {{ $labels.pod }} has had no connection for ten minutes, although calls are queued: {{ $value }}.'`}}
- alert: PercoreClientsDisconnect
  expr: |-
    sum by (namespace) (increase(percore_gateway_call_seconds_count{ {{- $series }},code="disconnected"}[1h]))
    / sum by (namespace) (increase(percore_gateway_call_seconds_count{ {{- $series }}}[1h])) > {{ $rules.clientDisconnectPercent }} / 100
    and round(sum by (namespace) (increase(percore_gateway_call_seconds_count{ {{- $series }},code="disconnected"}[1h]))) >= {{ int $rules.minimumCalls }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: Clients disconnect before they are answered.
    description: {{`'In {{ $value | humanizePercentage }} of the calls of the last hour the client disconnected before the answer.'`}}
- alert: PercoreLogLinesLost
  expr: round(sum by (namespace, pod) (increase(percore_gateway_log_lines_lost_total{ {{- $series }}}[1h]))) > 0
  labels:
    severity: warning
  annotations:
    summary: A gateway's log has gaps.
    description: {{`'Lines that gateway pod {{ $labels.pod }} could not write to its log within an hour: {{ $value }}.'`}}
{{- end }}
