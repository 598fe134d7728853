{{/* Codes of calls that the release owed an answer and did not give. A model that raises counts too: nobody else can mend it. */}}
{{- define "percore.failedCodes" -}}429|500|502|503|504|other{{- end }}

{{/*
What counts for the objective of success: calls that were answered, and those that should have been. What the caller did wrong
(400, 404, 413 ...) and whoever left before the answer say nothing of the release, and would thin out what does.
*/}}
{{- define "percore.validCodes" -}}200|{{ include "percore.failedCodes" . }}{{- end }}

{{/* Labels of the gateway's series and of what is recorded from them, of this release alone. */}}
{{- define "percore.gatewaySeries" -}}
namespace="{{ .Release.Namespace }}",service="{{ include "percore.fullname" . }}-gateway"
{{- end }}

{{/* How many calls there were, failed, waited, or waited long, within a window: `increase`. Or how many a second: `rate`. */}}
{{- define "percore.valid_calls" -}}
sum by (namespace, service) ({{ .function }}(percore_gateway_call_duration_seconds_count{ {{- include "percore.gatewaySeries" .root }},code=~"{{ include "percore.validCodes" . }}"}[{{ .window }}]))
{{- end }}

{{- define "percore.failed_calls" -}}
sum by (namespace, service) ({{ .function }}(percore_gateway_call_duration_seconds_count{ {{- include "percore.gatewaySeries" .root }},code=~"{{ include "percore.failedCodes" . }}"}[{{ .window }}]))
{{- end }}

{{- define "percore.waits" -}}
sum by (namespace, service) ({{ .function }}(percore_gateway_wait_seconds_count{ {{- include "percore.gatewaySeries" .root }}}[{{ .window }}]))
{{- end }}

{{/* The label of the bucket is `60.0` or `60`: clients and versions of Prometheus differ. */}}
{{- define "percore.long_waits" -}}
clamp_min(
  {{ include "percore.waits" . }}
  - sum by (namespace, service) ({{ .function }}(percore_gateway_wait_seconds_bucket{ {{- include "percore.gatewaySeries" .root }},le=~"{{ int .root.Values.monitoring.rules.waitSeconds }}(\\.0)?"}[{{ .window }}])),
  0
)
{{- end }}

{{/* Seconds between two evaluations of the recordings: a sum over recorded rates times this is a number of calls. */}}
{{- define "percore.recordSeconds" -}}30{{- end }}

{{/* Where no call was made there is no ratio. */}}
{{- define "percore.recordings" -}}
{{- $rules := .Values.monitoring.rules }}
- record: service:percore_success_objective:ratio
  expr: vector({{ $rules.successObjective }} / 100)
- record: service:percore_wait_objective:ratio
  expr: vector({{ $rules.waitObjective }} / 100)
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
Long windows are summed from recorded rates and not from the counters, which are scraped every two seconds. A ratio of sums weighs
each call alike, as an average of ratios would not. Thirty days, or as many as Prometheus keeps, are what the dashboard says of the budget.
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
