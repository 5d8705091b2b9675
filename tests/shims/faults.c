/* A sick disk below any program: LD_PRELOAD this, and calls below a folder fail as they are told.
 *
 * Works for whatever reaches the disk through libc: Python's os.* calls, HDF5's pwrite64, and all
 * child processes, because the environment is inherited.
 *
 *   TRIALSTORE_SHIM_CONTROL   a file that holds the rules below (tests/shims writes it). It is
 *                             mapped shared, so that rules can be switched while programs run, and
 *                             counts are seen from outside.
 *   TRIALSTORE_SHIM_DELAY_MS  a slow disk, without a control file: so many milliseconds are added
 *                             to every write and every fsync ...
 *   TRIALSTORE_SHIM_BELOW     ... of files below this folder (default: all regular files).
 *
 * Build: cc -shared -fPIC -O2 -o faults.so faults.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The calls a rule is about, as bits. CREATE is every open() that may create or write. */
enum { WRITE = 1, SYNC = 2, SYNC_FOLDER = 4, CREATE = 8, RENAME = 16, MKDIR = 32 };
/* What a rule does. HANG lasts until the rule is switched off. */
enum { FAIL = 1, SHORTEN = 2, DELAY = 3, HANG = 4 };

enum { RULES = 8, PATH_LENGTH = 512, REMEMBERED = 256 };

/* tests/shims/__init__.py has the same layout. */
struct rule {
    uint32_t is_on;
    uint32_t calls;      /* bits */
    uint32_t action;
    int32_t error;       /* FAIL: errno */
    int32_t pid;         /* 0: every process; n: only process n; -n: every process but n */
    uint32_t parts;      /* SHORTEN: take 1/parts of the bytes; 0: take one byte */
    uint64_t first;      /* the first call that it hits, counted from 1 */
    uint64_t count;      /* how many it hits from there on; 0: all */
    uint64_t every;      /* of these, hit every n-th */
    uint64_t delay_us;   /* DELAY */
    uint64_t seen;       /* calls that matched so far */
    uint64_t hit;        /* calls that it did something to */
    char below[PATH_LENGTH];    /* only paths below this folder */
    char holding[64];           /* only paths that hold this text; empty: all */
};
/* A descriptor whose write or fsync failed: to ask it for an fsync again is a mistake (Linux says
 * yes and has dropped the pages). */
struct failed { int32_t pid, fd; };
struct control {
    uint64_t attached;          /* processes that have loaded this */
    uint64_t synced_again;      /* such mistakes so far */
    uint64_t remembered;
    struct failed failed[REMEMBERED];
    struct rule rules[RULES];
};

static struct control *control;
static long delay_ms;
static const char *delay_below;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TRIALSTORE_SHIM_CONTROL");
    const char *delay = getenv("TRIALSTORE_SHIM_DELAY_MS");
    delay_below = getenv("TRIALSTORE_SHIM_BELOW");
    delay_ms = delay ? atol(delay) : 0;
    if (!path)
        return;
    int fd = REAL(open)(path, O_RDWR | O_CLOEXEC);
    void *map = fd < 0 ? MAP_FAILED
                       : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        /* Without its rules a test would pass for the wrong reason. */
        perror("TRIALSTORE_SHIM_CONTROL");
        _exit(99);
    }
    control = map;
    __atomic_add_fetch(&control->attached, 1, __ATOMIC_SEQ_CST);
    REAL(close)(fd);
}

static void rest(uint64_t us)
{
    struct timespec left = { us / 1000000, us % 1000000 * 1000 };
    while (nanosleep(&left, &left) && errno == EINTR)
        ;
}

static int is_below(const char *path, const char *folder)
{
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && (!path[length] || path[length] == '/');
}

static int concerns(const struct rule *rule, uint32_t call, const char *path)
{
    if (!rule->is_on || !(rule->calls & call) || !is_below(path, rule->below))
        return 0;
    if (rule->pid > 0 ? rule->pid != getpid() : rule->pid < 0 && -rule->pid == getpid())
        return 0;
    return !rule->holding[0] || strstr(path, rule->holding) != NULL;
}

/* Go through the rules for one call. Returns an errno for it to fail with, or 0; `size` is how many
 * bytes it may take. */
static int meet(uint32_t call, const char *path, size_t *size)
{
    int error = 0;
    if (delay_ms && (call & (WRITE | SYNC | SYNC_FOLDER)) &&
        (delay_below ? is_below(path, delay_below) : path[0] == '/'))
        rest(delay_ms * 1000);
    for (int i = 0; control && i < RULES; i++) {
        struct rule *rule = &control->rules[i];
        if (!concerns(rule, call, path))
            continue;
        uint64_t number = __atomic_add_fetch(&rule->seen, 1, __ATOMIC_SEQ_CST);
        if (number < rule->first || (rule->count && number >= rule->first + rule->count) ||
            (rule->every > 1 && number % rule->every))
            continue;
        __atomic_add_fetch(&rule->hit, 1, __ATOMIC_SEQ_CST);
        switch (rule->action) {
        case FAIL:
            error = rule->error;
            break;
        case SHORTEN:
            if (*size > 1)
                *size = rule->parts ? (*size + rule->parts - 1) / rule->parts : 1;
            break;
        case DELAY:
            rest(rule->delay_us);
            break;
        case HANG:
            while (*(volatile uint32_t *)&rule->is_on)
                rest(10000);
            break;
        }
    }
    return error;
}

/* The path of a descriptor if it is a regular file or a folder, or "". */
static const char *path_of(int fd, char *path)
{
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 || path[0] != '/' ? 0 : length] = 0;
    return path;
}

/* The absolute path of a name, or "". */
static const char *path_at(int folder, const char *name, char *path)
{
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return path;
    }
    char parent[PATH_MAX];
    if (folder == AT_FDCWD ? !getcwd(parent, sizeof parent) : !path_of(folder, parent)[0])
        return "";
    return snprintf(path, PATH_MAX, "%s/%s", parent, name) < PATH_MAX ? path : "";
}

static struct failed *find(int fd)
{
    for (int i = 0; control && i < REMEMBERED; i++)
        if (control->failed[i].pid == getpid() && control->failed[i].fd == fd)
            return &control->failed[i];
    return NULL;
}

static void remember(int fd)
{
    if (control && !find(fd)) {
        uint64_t place = __atomic_fetch_add(&control->remembered, 1, __ATOMIC_SEQ_CST);
        control->failed[place % REMEMBERED] = (struct failed){ getpid(), fd };
    }
}

/* What every call on a descriptor begins with: -1 with errno set if it shall fail. EINTR is no
 * failure, and a full disk or a failed write is one only for a later fsync. */
static int meet_fd(uint32_t call, int fd, size_t *size)
{
    char path[PATH_MAX];
    int before = errno;
    int error = (control || delay_ms) ? meet(call, path_of(fd, path), size) : 0;
    if (error && error != EINTR && call != SYNC_FOLDER)
        remember(fd);
    errno = error ? error : before;
    return error ? -1 : 0;
}

static int meet_path(uint32_t call, int folder, const char *name)
{
    char path[PATH_MAX];
    size_t size = 0;
    int before = errno;
    int error = (control || delay_ms) ? meet(call, path_at(folder, name, path), &size) : 0;
    errno = error ? error : before;
    return error ? -1 : 0;
}

/* --- the calls ------------------------------------------------------------------------------- */

ssize_t write(int fd, const void *data, size_t size)
{
    return meet_fd(WRITE, fd, &size) ? -1 : REAL(write)(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    return meet_fd(WRITE, fd, &size) ? -1 : REAL(pwrite)(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    return meet_fd(WRITE, fd, &size) ? -1 : REAL(pwrite64)(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    struct iovec cut[IOV_MAX];
    size_t size = 0, room;
    int used = 0;
    for (int i = 0; i < count; i++)
        size += pieces[i].iov_len;
    room = size;
    if (meet_fd(WRITE, fd, &room))
        return -1;
    if (room == size || count > IOV_MAX)
        return REAL(writev)(fd, pieces, count);
    for (; room; used++) {
        cut[used] = pieces[used];
        if (cut[used].iov_len > room)
            cut[used].iov_len = room;
        room -= cut[used].iov_len;
    }
    return REAL(writev)(fd, cut, used);
}

static int meet_sync(int fd)
{
    struct stat status;
    size_t size = 0;
    int is_folder = !fstat(fd, &status) && S_ISDIR(status.st_mode);
    if (!is_folder && find(fd))
        __atomic_add_fetch(&control->synced_again, 1, __ATOMIC_SEQ_CST);
    return meet_fd(is_folder ? SYNC_FOLDER : SYNC, fd, &size);
}

int fsync(int fd) { return meet_sync(fd) ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return meet_sync(fd) ? -1 : REAL(fdatasync)(fd); }

int close(int fd)
{
    struct failed *known = find(fd);
    if (known)
        *known = (struct failed){ 0, 0 };
    return REAL(close)(fd);
}

#define WRITES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR))
#define MODE(flags, mode)                                                                         \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                                                      \
        va_list rest_of_them;                                                                     \
        va_start(rest_of_them, flags);                                                            \
        mode = va_arg(rest_of_them, mode_t);                                                      \
        va_end(rest_of_them);                                                                     \
    }

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE(flags, mode)
    return WRITES(flags) && meet_path(CREATE, AT_FDCWD, path) ? -1 : REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE(flags, mode)
    return WRITES(flags) && meet_path(CREATE, AT_FDCWD, path) ? -1 : REAL(open64)(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE(flags, mode)
    return WRITES(flags) && meet_path(CREATE, folder, path) ? -1
                                                            : REAL(openat)(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE(flags, mode)
    return WRITES(flags) && meet_path(CREATE, folder, path)
               ? -1
               : REAL(openat64)(folder, path, flags, mode);
}

int rename(const char *from, const char *to)
{
    return meet_path(RENAME, AT_FDCWD, to) ? -1 : REAL(rename)(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    return meet_path(RENAME, to_folder, to) ? -1 : REAL(renameat)(from_folder, from, to_folder, to);
}

int mkdir(const char *path, mode_t mode)
{
    return meet_path(MKDIR, AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    return meet_path(MKDIR, folder, path) ? -1 : REAL(mkdirat)(folder, path, mode);
}
