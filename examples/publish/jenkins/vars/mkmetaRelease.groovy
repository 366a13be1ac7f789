// A step of a shared library: mkmetaRelease(path: "grp/paint/${env.TAG_NAME}") returns the ID of the manifest.
def call(Map args) {
    if (!args.path) {
        error('mkmetaRelease: path is not given')
    }
    // By the environment, and a script in single quotes: what is in them is never taken for a command.
    withEnv([
        "MKMETA=${args.program ?: 'mkmeta'}",
        "MKMETA_CONFIG=${args.config ?: '/etc/mkmeta/sw.toml'}",
        "MKMETA_PATH=${args.path}",
    ]) {
        return sh(
            label: 'mkmeta release',
            returnStdout: true,
            script: '"$MKMETA" release --config "$MKMETA_CONFIG" -- "$MKMETA_PATH"',
        ).trim()
    }
}
