# packaging/servers.sh, read by sh: `make uninstall` and the packages' scripts begin with it.
#
# refuse_while_serving FILE: fails, naming them, while servers run that were started from
# FILE. Their containers would run on, but a containerd that is started without FILE drops
# them: nobody can stop or reach them any more. FORCE=1 lets it pass.
# A server is known by its executable, also if that was replaced since, and by its flags.
refuse_while_serving() {
    serving=
    for process in /proc/[0-9]*; do
        case $(readlink "$process/exe" 2>/dev/null) in
        "$1" | "$1 (deleted)") ;;
        *) continue ;;
        esac
        name=$(tr '\0' '\n' <"$process/cmdline" 2>/dev/null | awk '
            word == "-namespace" { namespace = $0 }
            word == "-id" { id = $0 }
            { word = $0 }
            END { if (id != "") print namespace "/" id }')
        [ -z "$name" ] || serving="$serving
  pid ${process#/proc/}, for $name"
    done
    [ -n "$serving" ] || return 0
    if [ "${FORCE:-}" = 1 ]; then
        echo "$1 is removed although servers of it run:$serving" >&2
        return 0
    fi
    echo "$1 is not removed, because servers of it run:$serving
Without it, a containerd that is restarted drops their containers, whose processes then run
on without a manager. Delete the containers first; or let containerd's own shim serve them: make
a link $1 to it after the removal. FORCE=1 in the environment removes it now." >&2
    return 1
}
