{{/* Alerts on the autoscaler. Series of kube-state-metrics are selected by the names that the chart gives. */}}
{{- define "percore.autoscalerAlerts" -}}
{{- $full := include "percore.fullname" . }}
{{- $series := include "percore.gatewaySeries" . }}
{{- $here := printf "namespace=%q" (include "percore.namespace" .) }}
{{- $pods := printf "%s,deployment=\"%s-inference\"" $here $full }}
{{- $hpa := printf "%s,horizontalpodautoscaler=\"%s-inference\"" $here $full }}
{{- $queued := printf "sum by (namespace) (percore_in_flight_requests{%s,state=\"queued\"}) > 0" $series }}
- alert: PercoreCallsWaitAtMaximum
  expr: |-
    {{ $queued }}
    and on (namespace) (
      max by (namespace) (kube_horizontalpodautoscaler_status_desired_replicas{ {{- $hpa }}})
      >= max by (namespace) (kube_horizontalpodautoscaler_spec_max_replicas{ {{- $hpa }}})
    )
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: Calls are queued, and the autoscaler is at its maximum.
    description: {{`'Queued calls: {{ $value }}. The autoscaler already wants as many pods as it may.'`}}
- alert: PercoreAutoscalerBlind
  expr: |-
    max by (namespace) (kube_horizontalpodautoscaler_status_condition{ {{- $hpa }},condition="ScalingActive",status="false"}) == 1
    unless on (namespace) max by (namespace) (kube_deployment_spec_replicas{ {{- $pods }}}) == 0
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: The autoscaler cannot read how many calls there are.
    description: The autoscaler has not been able to scale for five minutes. The number of pods stays as it is, however many calls come.
# Fires at zero pods too, and when the HPA does not see that the metric is missing, because of KEDA's fallback.
- alert: PercoreAutoscalerStuck
  expr: |-
    {{ $queued }}
    and on (namespace) (
      max by (namespace) (kube_horizontalpodautoscaler_status_desired_replicas{ {{- $hpa }}})
      < max by (namespace) (kube_horizontalpodautoscaler_spec_max_replicas{ {{- $hpa }}})
    )
    and on (namespace) (
      max by (namespace) (kube_horizontalpodautoscaler_status_desired_replicas{ {{- $hpa }}})
      < sum by (namespace) (percore_in_flight_requests{ {{- $series }}})
    )
  for: 5m
  labels:
    severity: critical
  annotations:
    summary: Calls are queued, and the autoscaler asks for no pod for them.
    description: {{`'Queued calls: {{ $value }}. For five minutes the autoscaler has wanted fewer pods than there are calls, although it is below its maximum.'`}}
{{- end }}

{{/* Alerts on inference pods. Series of kube-state-metrics are selected by the names that the chart gives. */}}
{{- define "percore.podAlerts" -}}
{{- $full := include "percore.fullname" . }}
{{- $series := include "percore.gatewaySeries" . }}
{{- $here := printf "namespace=%q" (include "percore.namespace" .) }}
{{- $pods := printf "%s,deployment=\"%s-inference\"" $here $full }}
{{- $statusServers := printf "%s,service=\"%s-inference\"" $here $full }}
{{- $containers := printf "%s,pod=~\"%s-(inference|gateway)-[0-9a-z]+(-[0-9a-z]{5})?\"" $here $full }}
{{- $queued := printf "sum by (namespace) (percore_in_flight_requests{%s,state=\"queued\"}) > 0" $series }}
{{- $missing := printf "max by (namespace) (kube_deployment_spec_replicas{%s}) - max by (namespace) (kube_deployment_status_replicas_ready{%s}) > 0" $pods $pods }}
# A pod that loads its models in time is ready before this fires. It is critical while callers are queued.
- alert: PercorePodsNotReady
  expr: |-
    {{ $missing }}
    and on (namespace) {{ $queued }}
  for: {{ add (include "percore.loadSeconds" .) 300 }}s
  labels:
    severity: critical
  annotations:
    summary: Calls are queued for pods that do not become ready.
    description: {{ printf `'Wanted pods that have not been ready for %ds: {{ $value }}. Calls are queued for them.'` (add (include "percore.loadSeconds" .) 300) }}
- alert: PercorePodsNotReady
  expr: {{ $missing }}
  for: {{ add (include "percore.loadSeconds" .) 300 }}s
  labels:
    severity: warning
  annotations:
    summary: Pods that are wanted do not become ready.
    description: {{ printf `'Wanted pods that have not been ready for %ds: {{ $value }}.'` (add (include "percore.loadSeconds" .) 300) }}
# During an update the old pods stay ready. So PercorePodsNotReady does not fire, even if no new pod becomes ready.
- alert: PercoreRevisionNotReady
  expr: max by (namespace) (kube_deployment_status_condition{ {{- $pods }},condition="Progressing",status="false"}) == 1
  labels:
    severity: warning
  annotations:
    summary: A new revision of the pods does not become ready.
    description: No pod of the new revision has become ready for {{ add (include "percore.loadSeconds" .) 300 }}s. Pods of the previous revision continue to serve, if there are any.
- alert: PercoreContainersRestart
  expr: |-
    round(max by (namespace, pod, container) (
      increase(kube_pod_container_status_restarts_total{ {{- $containers }}}[1h])
      or increase(kube_pod_init_container_status_restarts_total{ {{- $containers }}}[1h])
    )) >= 2
  labels:
    severity: warning
  annotations:
    summary: A container restarts again and again.
    description: {{`'Container {{ $labels.container }} of pod {{ $labels.pod }} was restarted {{ $value }} times within an hour.'`}}
# Workers that end after a timeout or a client's disconnect are seen in the statuses of their calls. A crash may be seen only here.
- alert: PercoreWorkersCrash
  expr: round(sum by (namespace) (increase(percore_worker_restarts_total{ {{- $statusServers }},reason=~"crashed|arbiter-lost"}[1h]))) >= 3
  labels:
    severity: warning
  annotations:
    summary: Workers crash.
    description: {{`'Workers that died within an hour: {{ $value }}. A worker that computed lost its call, and each has to load the models again.'`}}
{{- end }}
