/* A read-only passthrough whose every answer comes late: a file server at a distance, over /dev/fuse itself.
 *
 *     distant DIRECTORY MOUNT_POINT MICROSECONDS [SECONDS]
 *
 * It prints "ready" and serves until it is unmounted. One thread reads requests and makes the answers, at once; another
 * sends each when its time has come: however many are in flight, each waits only for itself. Names, there or not, and
 * attributes may be cached for SECONDS, as NFS clients do, and what was read with them; 0, the default: nothing may be.
 * Nodes are never forgotten.
 *
 * The xattr user.distant.requests of any file, answered at once, has a line for each kind of request: its number in
 * linux/fuse.h and how many have come, but for those that get no answer.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST_MAX = (1 << 20) + 4096, READ_MAX = 1 << 17, BUCKETS = 1 << 16, OPCODES = 64 };

static const char COUNTS[] = "user.distant.requests";

struct node {
    uint64_t ino;
    struct node *next;
    char path[];
};

struct answer {
    struct answer *next;
    struct timespec due;
    size_t size;
    struct fuse_out_header head;
    char data[];
};

static int device;
static long delay_us, cached_s;
static unsigned long counts[OPCODES];
static struct node *nodes[BUCKETS];
static struct node *top;
static struct answer *first, **last = &first;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t filled = PTHREAD_COND_INITIALIZER;

static void *need(void *memory)
{
    if (!memory) {
        perror("distant");
        exit(1);
    }
    return memory;
}

/* Node IDs are addresses, but for the root: a name has to have the same one each time it is looked up. */
static struct node *node_of(uint64_t id) { return id == FUSE_ROOT_ID ? top : (struct node *)(uintptr_t)id; }

static struct node *node_at(const char *path, uint64_t ino)
{
    struct node **slot = &nodes[ino % BUCKETS];
    for (struct node *node = *slot; node; node = node->next)
        if (node->ino == ino && !strcmp(node->path, path))
            return node;
    struct node *node = need(malloc(sizeof *node + strlen(path) + 1));
    node->ino = ino;
    strcpy(node->path, path);
    node->next = *slot;
    return *slot = node;
}

static void set_attributes(struct fuse_attr *to, const struct stat *from)
{
    *to = (struct fuse_attr){
        .ino = from->st_ino, .size = from->st_size, .blocks = from->st_blocks,
        .atime = from->st_atim.tv_sec, .mtime = from->st_mtim.tv_sec, .ctime = from->st_ctim.tv_sec,
        .atimensec = from->st_atim.tv_nsec, .mtimensec = from->st_mtim.tv_nsec, .ctimensec = from->st_ctim.tv_nsec,
        .mode = from->st_mode, .nlink = from->st_nlink, .uid = from->st_uid, .gid = from->st_gid,
        .rdev = from->st_rdev, .blksize = 4096,
    };
}

static void queue_after(long microseconds, uint64_t unique, int error, const void *data, size_t size)
{
    struct answer *answer = need(malloc(sizeof *answer + size));
    answer->next = NULL;
    answer->size = sizeof answer->head + size;
    answer->head = (struct fuse_out_header){.len = answer->size, .error = -error, .unique = unique};
    if (size)
        memcpy(answer->data, data, size);
    clock_gettime(CLOCK_MONOTONIC, &answer->due);
    answer->due.tv_nsec += microseconds * 1000;
    answer->due.tv_sec += answer->due.tv_nsec / 1000000000;
    answer->due.tv_nsec %= 1000000000;
    pthread_mutex_lock(&lock);
    *last = answer;
    last = &answer->next;
    pthread_cond_signal(&filled);
    pthread_mutex_unlock(&lock);
}

static void queue(uint64_t unique, int error, const void *data, size_t size)
{
    queue_after(delay_us, unique, error, data, size);
}

static void *send_answers(void *unused)
{
    prctl(PR_SET_TIMERSLACK, 1);
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!first)
            pthread_cond_wait(&filled, &lock);
        struct answer *answer = first;
        first = answer->next;
        if (!first)
            last = &first;
        pthread_mutex_unlock(&lock);
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &answer->due, NULL) == EINTR)
            ;
        /* ENOENT: whoever asked was interrupted; ENODEV: unmounted */
        if (write(device, &answer->head, answer->size) < 0 && errno != ENOENT && errno != ENODEV)
            perror("distant: write");
        free(answer);
    }
    return unused;
}

static void look_up(const struct fuse_in_header *in, const char *name)
{
    char path[PATH_MAX];
    struct stat st;
    struct fuse_entry_out out = {.entry_valid = cached_s, .attr_valid = cached_s};
    snprintf(path, sizeof path, "%s/%s", node_of(in->nodeid)->path, name);
    if (lstat(path, &st)) {
        if (errno == ENOENT && cached_s) /* node 0: there is none, which may be cached */
            queue(in->unique, 0, &out, sizeof out);
        else
            queue(in->unique, errno, NULL, 0);
        return;
    }
    out.nodeid = (uintptr_t)node_at(path, st.st_ino);
    set_attributes(&out.attr, &st);
    queue(in->unique, 0, &out, sizeof out);
}

static void get_attributes(const struct fuse_in_header *in)
{
    struct stat st;
    struct fuse_attr_out out = {.attr_valid = cached_s};
    int failed = lstat(node_of(in->nodeid)->path, &st);
    if (!failed)
        set_attributes(&out.attr, &st);
    queue(in->unique, failed ? errno : 0, &out, failed ? 0 : sizeof out);
}

static void open_node(const struct fuse_in_header *in)
{
    struct fuse_open_out out = {.open_flags = cached_s && in->opcode == FUSE_OPEN ? FOPEN_KEEP_CACHE : 0};
    const char *path = node_of(in->nodeid)->path;
    if (in->opcode == FUSE_OPENDIR) {
        DIR *directory = opendir(path);
        out.fh = (uintptr_t)directory;
        queue(in->unique, directory ? 0 : errno, &out, directory ? sizeof out : 0);
    } else {
        int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        out.fh = fd;
        queue(in->unique, fd < 0 ? errno : 0, &out, fd < 0 ? 0 : sizeof out);
    }
}

static void read_node(const struct fuse_in_header *in, const struct fuse_read_in *read)
{
    static char data[READ_MAX];
    size_t room = read->size < READ_MAX ? read->size : READ_MAX, size = 0;
    if (in->opcode == FUSE_READ) {
        ssize_t count = pread((int)read->fh, data, room, read->offset);
        queue(in->unique, count < 0 ? errno : 0, data, count < 0 ? 0 : count);
        return;
    }
    DIR *directory = (DIR *)(uintptr_t)read->fh;
    seekdir(directory, read->offset);
    for (struct dirent *entry; (entry = readdir(directory));) {
        size_t length = strlen(entry->d_name), step = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + length);
        if (size + step > room)
            break;
        struct fuse_dirent *to = (struct fuse_dirent *)(data + size);
        *to = (struct fuse_dirent){entry->d_ino, telldir(directory), length, entry->d_type};
        memset(to->name, 0, step - FUSE_NAME_OFFSET);
        memcpy(to->name, entry->d_name, length);
        size += step;
    }
    queue(in->unique, 0, data, size);
}

static void get_xattrs(const struct fuse_in_header *in, const struct fuse_getxattr_in *get)
{
    static char data[XATTR_SIZE_MAX];
    const char *path = node_of(in->nodeid)->path, *name = (const char *)(get + 1);
    size_t room = get->size < sizeof data ? get->size : sizeof data;
    ssize_t count = in->opcode == FUSE_LISTXATTR ? llistxattr(path, data, room) : lgetxattr(path, name, data, room);
    struct fuse_getxattr_out out = {.size = count};
    if (count < 0)
        queue(in->unique, errno, NULL, 0);
    else if (!get->size)
        queue(in->unique, 0, &out, sizeof out);
    else
        queue(in->unique, 0, data, count);
}

static void tell_counts(const struct fuse_in_header *in, const struct fuse_getxattr_in *get)
{
    char text[OPCODES * 32];
    size_t size = 0;
    for (int opcode = 0; opcode < OPCODES; opcode++)
        if (counts[opcode])
            size += snprintf(text + size, sizeof text - size, "%d %lu\n", opcode, counts[opcode]);
    struct fuse_getxattr_out out = {.size = size};
    if (!get->size)
        queue_after(0, in->unique, 0, &out, sizeof out);
    else if (get->size < size)
        queue_after(0, in->unique, ERANGE, NULL, 0);
    else
        queue_after(0, in->unique, 0, text, size);
}

static void read_link(const struct fuse_in_header *in)
{
    char target[PATH_MAX];
    ssize_t count = readlink(node_of(in->nodeid)->path, target, sizeof target);
    queue(in->unique, count < 0 ? errno : 0, target, count < 0 ? 0 : count);
}

static void begin(const struct fuse_in_header *in, const struct fuse_init_in *init)
{
    struct fuse_init_out out = {
        .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_readahead = init->max_readahead,
        .flags = init->flags & (FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS | FUSE_BIG_WRITES | FUSE_MAX_PAGES),
        .max_background = 1024, .congestion_threshold = 1024, .max_write = READ_MAX, .time_gran = 1,
        .max_pages = READ_MAX / 4096,
    };
    queue(in->unique, 0, &out, sizeof out);
}

static void perform(const struct fuse_in_header *in)
{
    const void *body = in + 1;
    struct fuse_statfs_out space = {.st = {.bsize = 4096, .namelen = NAME_MAX, .frsize = 4096}};
    if (in->opcode == FUSE_GETXATTR && !strcmp((const char *)((const struct fuse_getxattr_in *)body + 1), COUNTS)) {
        tell_counts(in, body);
        return;
    }
    if (in->opcode < OPCODES && in->opcode != FUSE_FORGET && in->opcode != FUSE_INTERRUPT &&
        in->opcode != FUSE_BATCH_FORGET)
        counts[in->opcode]++;
    switch (in->opcode) {
    case FUSE_INIT: begin(in, body); break;
    case FUSE_LOOKUP: look_up(in, body); break;
    case FUSE_GETATTR: get_attributes(in); break;
    case FUSE_OPEN:
    case FUSE_OPENDIR: open_node(in); break;
    case FUSE_READ:
    case FUSE_READDIR: read_node(in, body); break;
    case FUSE_LISTXATTR:
    case FUSE_GETXATTR: get_xattrs(in, body); break;
    case FUSE_READLINK: read_link(in); break;
    case FUSE_RELEASE: close((int)((const struct fuse_release_in *)body)->fh); queue(in->unique, 0, NULL, 0); break;
    case FUSE_RELEASEDIR:
        closedir((DIR *)(uintptr_t)((const struct fuse_release_in *)body)->fh);
        queue(in->unique, 0, NULL, 0);
        break;
    case FUSE_STATFS: queue(in->unique, 0, &space, sizeof space); break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT: break; /* no answer is expected */
    default: queue(in->unique, ENOSYS, NULL, 0);
    }
}

int main(int argc, char **argv)
{
    char options[128];
    pthread_t sender;
    struct stat st;
    void *request = need(malloc(REQUEST_MAX));
    if (argc < 4 || argc > 5 || stat(argv[1], &st) || !(delay_us = atol(argv[3]))) {
        fprintf(stderr, "usage: distant DIRECTORY MOUNT_POINT MICROSECONDS [SECONDS]\n");
        return 2;
    }
    cached_s = argc > 4 ? atol(argv[4]) : 0;
    top = node_at(argv[1], st.st_ino);
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) {
        perror("/dev/fuse");
        return 1;
    }
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=%d,group_id=%d", device, getuid(), getgid());
    if (mount("distant", argv[2], "fuse.distant", MS_RDONLY | MS_NOSUID | MS_NODEV, options)) {
        perror(argv[2]);
        return 1;
    }
    if (pthread_create(&sender, NULL, send_answers, NULL))
        return 1;
    puts("ready");
    fflush(stdout);
    for (;;) {
        if (read(device, request, REQUEST_MAX) >= 0)
            perform(request);
        else if (errno == ENODEV) /* unmounted */
            return 0;
        else if (errno != ENOENT && errno != EINTR && errno != EAGAIN)
            perror("distant: read");
    }
}
