{{- define "weft.image" -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
{{- end }}

{{- define "weft.cniArgs" -}}
{{- $args := list -}}
{{- if ne .Values.cni.binDir "/opt/cni/bin" }}{{ $args = append $args (printf "--bin-dir=%s" .Values.cni.binDir) }}{{ end -}}
{{- if ne .Values.cni.confDir "/etc/cni/net.d" }}{{ $args = append $args (printf "--conf-dir=%s" .Values.cni.confDir) }}{{ end -}}
{{- toJson $args -}}
{{- end }}

{{- define "weft.installArgs" -}}
{{- $args := list "kube" "install" -}}
{{- if ne .Values.cni.binDir "/opt/cni/bin" }}{{ $args = append $args (printf "--bin-dir=%s" .Values.cni.binDir) }}{{ end -}}
{{- toJson $args -}}
{{- end }}

{{- define "weft.launchArgs" -}}
{{- $args := concat (list "kube" "launch") (include "weft.cniArgs" . | fromJsonArray) -}}
{{- with .Values.range }}{{ $args = append $args (printf "--range=%s" .) }}{{ end -}}
{{- with .Values.reserve }}{{ $args = append $args (printf "--reserve=%s" (join "," .)) }}{{ end -}}
{{- with .Values.mtu }}{{ $args = append $args (printf "--mtu=%d" (int .)) }}{{ end -}}
{{- if not .Values.encryption }}{{ $args = append $args "--encryption=off" }}{{ end -}}
{{- with .Values.trustedSubnets }}{{ $args = append $args (printf "--trusted-subnets=%s" (join "," .)) }}{{ end -}}
{{- if not .Values.masquerade }}{{ $args = append $args "--no-masquerade" }}{{ end -}}
{{- if ne (int .Values.port) 6783 }}{{ $args = append $args (printf "--port=%d" (int .Values.port)) }}{{ end -}}
{{- if ne .Values.dataDir "/var/lib/weft" }}{{ $args = append $args (printf "--data-dir=%s" .Values.dataDir) }}{{ end -}}
{{- if ne .Values.logLevel "info" }}{{ $args = append $args (printf "--log-level=%s" .Values.logLevel) }}{{ end -}}
{{- toJson (concat $args .Values.extraArgs) -}}
{{- end }}

{{- define "weft.confinement" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
# Where there is AppArmor or SELinux, their profiles for containers let nobody at /proc/sys, network namespaces or the runtime's directories.
appArmorProfile:
  type: Unconfined
seLinuxOptions:
  type: spc_t
{{- end }}
