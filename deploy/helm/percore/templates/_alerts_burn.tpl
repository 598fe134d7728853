{{/*
Objectives, with the windows and burn rates of the SRE workbook. At a burn rate of 14.4 the budget of thirty days lasts two days. A
least number of calls is required too, because among few calls a single one is a large share.
*/}}
{{- define "percore.burnAlerts" -}}
{{- $series := include "percore.gatewaySeries" . }}
{{- $rules := .Values.monitoring.rules }}
{{- range $alert := list
    (dict "name" "PercoreErrorBudgetBurn" "bad" "failed_calls" "objective" $rules.successObjective
      "summary" "Calls fail so often that the error budget will not last."
      "said" (printf "failed; the objective is that %v%% succeed." $rules.successObjective))
    (dict "name" "PercoreWaitBudgetBurn" "bad" "long_waits" "objective" $rules.queueTimeObjective
      "summary" "Calls are queued so long that the budget of long queue times will not last."
      "said" (printf "were queued longer than %ds; the objective is that %v%% are not." (int $rules.queueTimeSeconds) $rules.queueTimeObjective)) }}
{{- range $window := list
    (dict "long" "1h" "short" "5m" "burn" "14.4" "severity" "critical")
    (dict "long" "6h" "short" "30m" "burn" "6" "severity" "critical")
    (dict "long" "3d" "short" "6h" "burn" "1" "severity" "warning") }}
- alert: {{ $alert.name }}
  expr: |-
    service:percore_gateway_{{ $alert.bad }}:ratio_rate{{ $window.long }}{ {{- $series }}} > {{ $window.burn }} * (1 - {{ $alert.objective }} / 100)
    and service:percore_gateway_{{ $alert.bad }}:ratio_rate{{ $window.short }}{ {{- $series }}} > {{ $window.burn }} * (1 - {{ $alert.objective }} / 100)
    {{- if eq $window.long "3d" }}
    and round(sum_over_time(service:percore_gateway_{{ $alert.bad }}:rate5m{ {{- $series }}}[{{ $window.long }}]) * {{ include "percore.recordSeconds" $ }}) >= {{ int $rules.minimumCalls }}
    {{- else }}
    and round({{ include (printf "percore.%s" $alert.bad) (dict "root" $ "function" "increase" "window" $window.long) | nindent 6 | trim }}) >= {{ int $rules.minimumCalls }}
    {{- end }}
  labels:
    severity: {{ $window.severity }}
    long_window: {{ $window.long }}
    short_window: {{ $window.short }}
  annotations:
    summary: {{ $alert.summary }}
    description: "{{`{{ $value | humanizePercentage }}`}} of the calls of the last {{ $window.long }} {{ $alert.said }}"
{{- end }}
{{- end }}
{{- end }}
