import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.UUID;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;
import org.apache.kafka.common.utils.Utils;

/**
 * Prints where Kafka's Java producer puts keys: tests/unit/vectors/partitions.csv.
 *
 * java -cp 'kafka-clients-4.3.1.jar:slf4j-api.jar' PartitionVectors.java > partitions.csv
 */
class PartitionVectors {
    static final int[] PARTITIONS = {1, 2, 6, 10, 16, 50, 100};

    public static void main(String[] arguments) {
        List<String> names = new ArrayList<>(List.of("key", "murmur2"));
        for (int partitions : PARTITIONS) {
            names.add("of " + partitions);
        }
        System.out.println(String.join(",", names));
        for (String key : keys()) {
            byte[] bytes = HexFormat.of().parseHex(key);
            List<String> row = new ArrayList<>(List.of(key, "" + Utils.murmur2(bytes)));
            for (int partitions : PARTITIONS) {
                row.add("" + BuiltInPartitioner.partitionForKey(bytes, partitions));
            }
            System.out.println(String.join(",", row));
        }
    }

    /** Keys in hexadecimal, the same in each run. */
    static Set<String> keys() {
        Random random = new Random(20260101);
        List<byte[]> keys = new ArrayList<>();
        keys.add(new byte[0]);
        for (String text : List.of("0", "7", "100", "abc", "diku", "ITEM_CHECKED_OUT",
                "00000000-0000-0000-0000-000000000000", "Mühlhausen", "König", "図書館",
                "библиотека", "مكتبة", "\uD83D\uDCDA", "é", "e\u0301", " ", "\n", "\0")) {
            keys.add(text.getBytes(StandardCharsets.UTF_8));
        }
        for (int number = 0; number < 100; number++) {
            keys.add(Integer.toString(number * 7919).getBytes(StandardCharsets.UTF_8));
            UUID id = new UUID(random.nextLong(), random.nextLong());
            keys.add(id.toString().getBytes(StandardCharsets.UTF_8));
        }
        for (int length = 1; length <= 64; length++) {
            byte[] any = new byte[length];
            random.nextBytes(any);
            keys.add(any);
            byte[] high = new byte[length];
            byte[] ascii = new byte[length];
            for (int at = 0; at < length; at++) {
                high[at] = (byte) (128 + random.nextInt(128));
                ascii[at] = (byte) (32 + random.nextInt(95));
            }
            keys.add(high);
            keys.add(ascii);
        }
        Set<String> found = new LinkedHashSet<>();
        for (byte[] key : keys) {
            found.add(HexFormat.of().formatHex(key));
        }
        return found;
    }
}
