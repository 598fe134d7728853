{{/*
Codes of calls that failed by a fault of the release: 429, and every 5xx. A model that raises counts too, because only the operator
can fix it.
*/}}
{{- define "percore.failedCodes" -}}429|500|502|503|504|5xx{{- end }}

{{/*
Codes of calls that count for the objective of success. `2xx` and `3xx` are other good answers of a handler. Errors of the caller (400,
404, 413 ...) and clients that disconnected say nothing about the release, and would make the share of failures look smaller.
*/}}
{{- define "percore.validCodes" -}}200|2xx|3xx|{{ include "percore.failedCodes" . }}{{- end }}

{{/* Labels that select the series of this release's gateways, and what is recorded from them. */}}
{{- define "percore.gatewaySeries" -}}
namespace="{{ include "percore.namespace" . }}",service="{{ include "percore.fullname" . }}-gateway"
{{- end }}

{{/* Calls that counted, failed, were queued, or were queued long: how many within a window (`increase`), or per second (`rate`). */}}
{{- define "percore.valid_calls" -}}
sum by (namespace, service) ({{ .function }}(percore_gateway_call_seconds_count{ {{- include "percore.gatewaySeries" .root }},code=~"{{ include "percore.validCodes" . }}"}[{{ .window }}]))
{{- end }}

{{- define "percore.failed_calls" -}}
sum by (namespace, service) ({{ .function }}(percore_gateway_call_seconds_count{ {{- include "percore.gatewaySeries" .root }},code=~"{{ include "percore.failedCodes" . }}"}[{{ .window }}]))
{{- end }}

{{- define "percore.waits" -}}
sum by (namespace, service) ({{ .function }}(percore_call_queue_seconds_count{ {{- include "percore.gatewaySeries" .root }}}[{{ .window }}]))
{{- end }}

{{/* The bucket's label is `60.0` or `60`, depending on the version of Prometheus. */}}
{{- define "percore.long_waits" -}}
clamp_min(
  {{ include "percore.waits" . }}
  - sum by (namespace, service) ({{ .function }}(percore_call_queue_seconds_bucket{ {{- include "percore.gatewaySeries" .root }},le=~"{{ int .root.Values.monitoring.rules.queueTimeSeconds }}(\\.0)?"}[{{ .window }}])),
  0
)
{{- end }}

{{/* Seconds between two evaluations of the recordings. A sum of recorded rates, times this, is a number of calls. */}}
{{- define "percore.recordSeconds" -}}30{{- end }}

{{/* Without calls there is no ratio. */}}
{{- define "percore.recordings" -}}
{{- $rules := .Values.monitoring.rules }}
- record: service:percore_success_objective:ratio
  expr: {{ include "percore.constant" (dict "root" . "value" (printf "%v / 100" $rules.successObjective)) }}
- record: service:percore_wait_objective:ratio
  expr: {{ include "percore.constant" (dict "root" . "value" (printf "%v / 100" $rules.queueTimeObjective)) }}
{{- range $bad, $all := dict "failed_calls" "valid_calls" "long_waits" "waits" }}
{{- range $calls := list $bad $all }}
- record: service:percore_gateway_{{ $calls }}:rate5m
  expr: |-
    {{- include (printf "percore.%s" $calls) (dict "root" $ "function" "rate" "window" "5m") | nindent 4 }}
{{- end }}
{{- range $window := list "5m" "30m" "1h" "6h" }}
{{- $rate := dict "root" $ "function" "rate" "window" $window }}
- record: service:percore_gateway_{{ $bad }}:ratio_rate{{ $window }}
  expr: |-
    {{- include (printf "percore.%s" $bad) $rate | nindent 4 }}
    / ({{ include (printf "percore.%s" $all) $rate }} > 0)
{{- end }}
{{- end }}
{{- end }}

{{/*
Long windows are summed from recorded rates, because the counters themselves have a sample every two seconds. The ratio of the sums
counts each call equally; an average of ratios would not. The dashboard computes the budget from thirty days, or from what
Prometheus keeps.
*/}}
{{- define "percore.longRecordings" -}}
{{- $series := include "percore.gatewaySeries" . }}
{{- range $bad, $all := dict "failed_calls" "valid_calls" "long_waits" "waits" }}
{{- range $window := list "3d" "30d" }}
- record: service:percore_gateway_{{ $bad }}:ratio_rate{{ $window }}
  expr: |-
    sum_over_time(service:percore_gateway_{{ $bad }}:rate5m{ {{- $series }}}[{{ $window }}])
    / (sum_over_time(service:percore_gateway_{{ $all }}:rate5m{ {{- $series }}}[{{ $window }}]) > 0)
{{- end }}
{{- end }}
{{- end }}

{{/*
If Prometheus has several clusters, make a query evaluate each cluster separately. Every aggregation and every match in the rules
names the namespace first, so the label of the cluster is added before it. Sums over recorded series keep all labels.
*/}}
{{- define "percore.perCluster" -}}
{{- with .root.Values.monitoring.clusterLabel -}}
{{- regexReplaceAll "(by|on) \\(namespace" $.expr (printf "${1} (%s, namespace" .) -}}
{{- else -}}
{{- .expr -}}
{{- end -}}
{{- end }}

{{/* A number as a series: one for each cluster, if Prometheus has several. */}}
{{- define "percore.constant" -}}
{{- if .root.Values.monitoring.clusterLabel -}}
0 * max by (namespace) (percore_gateway_connections_limit{ {{- include "percore.gatewaySeries" .root }}}) + {{ .value }}
{{- else -}}
vector({{ .value }})
{{- end -}}
{{- end }}
