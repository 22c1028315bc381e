# Completion for bash of what people type: the actions and flags that the program's --help
# lists. containerd gives the other ones.
_containerd_shim_rs_v2() {
    local words
    words=$("$1" --help 2>/dev/null </dev/null | awk '
        /^[A-Z]/ { listed = /^Actions:/ || /^Flags/ }
        listed && /^  [-a-z]/ { print $1 }')
    case ${COMP_WORDS[COMP_CWORD - 1]} in
    -bundle | -socket | -address | -publish-binary) mapfile -t COMPREPLY < <(compgen -f -- "$2") ;;
    -namespace | -id) COMPREPLY=() ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$2") ;;
    esac
}
complete -F _containerd_shim_rs_v2 containerd-shim-rs-v2
