/* A wall clock that jumps: LD_PRELOAD this; only CLOCK_REALTIME and its relatives are shifted.
 *
 *   TRIALSTORE_CLOCK_CONTROL   a file of two 64-bit integers, mapped shared: nanoseconds to add to
 *                              the true time, and, unless zero, the time at which the clock stands
 *                              still.
 *
 * Build: cc -shared -fPIC -O2 -o clock.so clock.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t SECOND = 1000000000;

static volatile struct { int64_t shift, standing; } *control;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TRIALSTORE_CLOCK_CONTROL");
    if (!path)
        return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        /* Without it a test would pass for the wrong reason. */
        perror("TRIALSTORE_CLOCK_CONTROL");
        _exit(99);
    }
    control = map;
    close(fd);
}

int clock_gettime(clockid_t which, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    if (failed || !control || (which != CLOCK_REALTIME && which != CLOCK_REALTIME_COARSE))
        return failed;
    int64_t ns = control->standing;
    if (!ns)
        ns = now->tv_sec * SECOND + now->tv_nsec + control->shift;
    now->tv_sec = ns / SECOND - (ns % SECOND < 0);
    now->tv_nsec = ns % SECOND + (ns % SECOND < 0 ? SECOND : 0);
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *to)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (to)
        *to = precise.tv_sec;
    return precise.tv_sec;
}
